/**
 * Model text, made visible without changing it: what a reader could not see or what could disturb the page around it
 * is told apart here, and drawn with marks beside the original characters.
 */

export type Piece =
  | { kind: "text"; text: string }
  /** A newline, drawn as ↵ before the line breaks. */
  | { kind: "newline"; text: string }
  /** A tab, drawn as →. */
  | { kind: "tab"; text: string }
  /** A control or invisible character, drawn as its code point. */
  | { kind: "control"; text: string; code: string };

// C0 and C1 controls, soft hyphen, zero-width and bidirectional marks, line separators, invisible operators, BOM,
// interlinear annotations, tags. Zero-width joiner and variation selectors stay: emoji and many scripts are made of
// them.
const SPECIAL =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/u;
const SPLIT = new RegExp(SPECIAL.source, "gu");

/** Text in pieces; joined, their `text` is the text that came in. */
export function pieces(text: string): Piece[] {
  if (!SPECIAL.test(text)) return text ? [{ kind: "text", text }] : [];
  const out: Piece[] = [];
  let from = 0;
  for (const match of text.matchAll(SPLIT)) {
    if (match.index > from) out.push({ kind: "text", text: text.slice(from, match.index) });
    const character = match[0];
    from = match.index + character.length;
    if (character === "\n") out.push({ kind: "newline", text: character });
    else if (character === "\t") out.push({ kind: "tab", text: character });
    else {
      const code = (character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
      out.push({ kind: "control", text: character, code });
    }
  }
  if (from < text.length) out.push({ kind: "text", text: text.slice(from) });
  return out;
}

/** Text of at most `length` characters, the last of them … where it is cut. No character is halved. */
export function cut(text: string, length: number): string {
  // A character takes two places at most: what is behind these need not be looked at.
  const letters = [...text.slice(0, 2 * length + 2)];
  return letters.length > length ? `${letters.slice(0, Math.max(1, length - 1)).join("")}…` : text;
}

/** Whether a token looks like one a chat template or tokenizer put there: `<|im_end|>`, `</s>`, `[PAD]`. */
export function isSpecial(token: string): boolean {
  return /^(<[|｜][^<>]{1,60}[|｜]>|<\/?(s|eos|bos|pad|unk|start_of_turn|end_of_turn)>|\[(PAD|CLS|SEP|EOS|BOS|UNK)\])$/.test(token);
}

/** Text for a single line: control characters and runs of white space become one space. */
export function oneLine(text: string, limit = 200): string {
  let line = "";
  for (const piece of pieces(text.slice(0, limit * 4))) line += piece.kind === "text" ? piece.text : " ";
  line = line.replace(/\s+/g, " ").trim();
  return line.length > limit ? `${line.slice(0, limit).trimEnd()}…` : line;
}

/** Characters of a prompt among which its title is looked for. */
const HEAD = 20_000;

/** The part of a prompt that tells it from others: without the tokens of the chat template. */
export function promptTitle(prompt: string): string {
  const head = prompt.slice(0, HEAD);
  const user = /<[|｜]im_start[|｜]>user\n/.exec(head);
  // Looked for from here alone: over the whole prompt, every start of a turn would search all that follows.
  const asked = user ? head.slice(user.index + user[0].length).split(/<[|｜]im_end[|｜]>/, 1)[0] : undefined;
  const title = oneLine(asked ?? "") || oneLine(head.split(/<[|｜][^<>|｜]{1,60}[|｜]>/).join(" "));
  return title || "(empty prompt)";
}
