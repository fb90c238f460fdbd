/**
 * The little of Markdown and LaTeX that models write, as a tree: paragraphs, headings, lists, code, bold, italic, math.
 * Every leaf knows which characters of the text it is. What is not understood stays text.
 */

export type Inline =
  | { kind: "text"; text: string; start: number; end: number }
  | { kind: "code"; text: string; start: number; end: number }
  | { kind: "math"; tex: string; display: boolean; start: number; end: number }
  | { kind: "strong"; children: Inline[] }
  | { kind: "em"; children: Inline[] };

export type Block =
  | { kind: "paragraph"; children: Inline[] }
  | { kind: "heading"; level: number; children: Inline[] }
  | { kind: "item"; depth: number; marker: string; children: Inline[] }
  | { kind: "fence"; text: string; start: number; end: number };

/** How deep bold and italic go into each other. */
const DEEPEST = 6;

const MATH: readonly (readonly [string, string, boolean])[] = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

export function parse(text: string): Block[] {
  const blocks: Block[] = [];
  let from = 0;
  let paragraph: { start: number; end: number } | null = null;
  /** Closing marks of which there is no further one: they are not looked for again. */
  const spent = new Set<string>();
  const flush = () => {
    if (paragraph) blocks.push({ kind: "paragraph", children: inline(text.slice(paragraph.start, paragraph.end), paragraph.start) });
    paragraph = null;
  };
  while (from < text.length) {
    const newline = text.indexOf("\n", from);
    const end = newline < 0 ? text.length : newline;
    const line = text.slice(from, end);
    let next = end + 1;
    const heading = /^ {0,3}(#{1,6})\s+/.exec(line);
    const item = /^([ \t]*)([-*+•]|\d{1,4}[.)])\s+(?=\S)/.exec(line);
    if (/^ {0,3}```/.test(line)) {
      flush();
      const close = text.indexOf("\n```", end);
      const stop = close < 0 ? text.length : close;
      blocks.push({ kind: "fence", text: text.slice(Math.min(next, stop), stop), start: from, end: stop });
      const after = close < 0 ? -1 : text.indexOf("\n", close + 1);
      next = after < 0 ? text.length : after + 1;
    } else if (!line.trim()) flush();
    else if (heading) {
      flush();
      const [mark] = heading;
      blocks.push({ kind: "heading", level: (heading[1] as string).length, children: inline(line.slice(mark.length), from + mark.length) });
    } else if (item) {
      flush();
      const [mark, indent, marker] = item as unknown as [string, string, string];
      blocks.push({
        kind: "item",
        depth: Math.min(4, Math.floor(indent.replaceAll("\t", "  ").length / 2)),
        marker: /\d/.test(marker) ? marker : "•",
        children: inline(line.slice(mark.length), from + mark.length),
      });
    } else {
      // Math on display may span lines, blank ones too.
      const open = /^\s*(\$\$|\\\[)/.exec(line)?.[1];
      const mark = open === "$$" ? "$$" : "\\]";
      const close = open && !spent.has(mark) ? text.indexOf(mark, from + line.indexOf(open) + 2) : -1;
      if (open && close < 0) spent.add(mark);
      if (close >= 0) {
        const stop = text.indexOf("\n", close + 2);
        next = (stop < 0 ? text.length : stop) + 1;
      }
      const start: number = (paragraph as { start: number } | null)?.start ?? from;
      paragraph = { start, end: Math.min(next - 1, text.length) };
    }
    from = next;
  }
  flush();
  return blocks;
}

/** A stretch of text without blocks; `base` is where it starts in the whole. */
export function inline(text: string, base: number, depth = 0): Inline[] {
  const out: Inline[] = [];
  /** Marks of which there is no further one: they are not looked for again. */
  const spent = new Set<string>();
  let plain = 0;
  let at = 0;
  const find = (mark: string, from: number) => {
    if (spent.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) spent.add(mark);
    return found;
  };
  const push = (item: Inline, start: number, end: number) => {
    if (start > plain) out.push({ kind: "text", text: text.slice(plain, start), start: base + plain, end: base + start });
    out.push(item);
    at = plain = end;
  };
  while (at < text.length) {
    const character = text[at] as string;
    if (character === "`") {
      const end = find("`", at + 1);
      if (end > at + 1) {
        push({ kind: "code", text: text.slice(at + 1, end), start: base + at, end: base + end + 1 }, at, end + 1);
        continue;
      }
    } else if (character === "$" || character === "\\") {
      const math = mathAt(text, at, find);
      if (math) {
        const { tex, display, end } = math;
        push({ kind: "math", tex, display, start: base + at, end: base + end }, at, end);
        continue;
      }
    } else if ((character === "*" || character === "_") && depth < DEEPEST) {
      const mark = text[at + 1] === character ? character + character : character;
      const from = at + mark.length;
      let end = /\S/.test(text[from] ?? " ") && !(character === "_" && /\w/.test(text[at - 1] ?? " ")) ? find(mark, from + 1) : -1;
      // Two of them are another mark.
      while (mark.length < 2 && end > 0 && text[end + 1] === character) end = find(mark, end + 2);
      const closes = end > from && /\S/.test(text[end - 1] as string) && !(character === "_" && /\w/.test(text[end + mark.length] ?? " "));
      if (closes && !text.slice(from, end).includes("\n\n")) {
        const children = inline(text.slice(from, end), base + from, depth + 1);
        push({ kind: mark.length > 1 ? "strong" : "em", children }, at, end + mark.length);
        continue;
      }
      at += mark.length;
      continue;
    }
    at++;
  }
  if (text.length > plain) out.push({ kind: "text", text: text.slice(plain), start: base + plain, end: base + text.length });
  return out;
}

function mathAt(
  text: string,
  at: number,
  find: (mark: string, from: number) => number,
): { tex: string; display: boolean; end: number } | null {
  for (const [open, close, display] of MATH) {
    if (!text.startsWith(open, at)) continue;
    const from = at + open.length;
    const end = find(close, from);
    if (end <= from) return null;
    const tex = text.slice(from, end);
    // A price is no formula: “$5 and $6”.
    if (open === "$" && (/^\s|\s$|\n/.test(tex) || /\d/.test(text[end + 1] ?? ""))) return null;
    return { tex, display, end: end + close.length };
  }
  return null;
}
