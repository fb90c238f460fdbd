/**
 * Tokens as DOM, built by hand: one span a token, filled when near the screen, recoloured by class alone. A component
 * a token would be far too slow at 64 × 1024.
 *
 * A span's text is the token's text, character for character: marks are drawn by CSS beside it, so that copying and
 * searching see what the model wrote. Its class is its colour and nothing else; what it is lives in attributes.
 */
import type { ResponseTokens } from "../../bundle/join";
import { type Scale, step } from "../../colour";
import { isSpecial, pieces } from "../../text";
import { LETTERS } from "./marks";

/** Characters of a single token that are drawn. */
const LONGEST = 2000;

/** Elements that stand for one character each, in one text: a text of line breaks alone would be as many. */
const MOST_MARKS = 4000;

/** Characters of a special token's name that are drawn in full; the end of a longer one is cut by CSS. */
const LONG_NAME = 20;

const filled = new WeakMap<HTMLElement, HTMLElement[]>();
const marked = new WeakMap<HTMLElement, Uint8Array>();

/** The spans of a container that has been filled, one a token. */
export function tokenSpans(container: HTMLElement): readonly HTMLElement[] {
  return filled.get(container) ?? [];
}

/** Replaces the container's content by one `span.tok[data-i]` a token. */
export function fillTokens(container: HTMLElement, tokens: ResponseTokens): void {
  const fragment = document.createDocumentFragment();
  const spans: HTMLElement[] = [];
  for (let i = 0; i < tokens.n; i++) {
    const text = tokens.strings[i] ?? "";
    const span = document.createElement("span");
    span.className = "tok";
    span.setAttribute("data-i", String(i));
    if (!text) span.setAttribute("data-k", "gap");
    else if (text.charCodeAt(0) < 94 && isSpecial(text)) {
      span.setAttribute("data-k", "special");
      span.append(inner(text.length > LONG_NAME ? "w long" : "w", text));
    } else if (/^[\p{L}\p{N} !-~]*$/u.test(text) && text.length <= LONGEST) span.textContent = text;
    else appendPieces(span, text);
    spans.push(span);
    fragment.append(span);
    if (text.endsWith("\n")) breakAfter(span, fragment);
  }
  container.replaceChildren(fragment);
  filled.set(container, spans);
  marked.delete(container);
}

/**
 * The line break of a newline at a token's end comes after its span: inside, the span would go on to the next line and
 * leave an empty painted sliver there.
 */
function breakAfter(span: HTMLElement, fragment: DocumentFragment): void {
  span.lastElementChild?.classList.add("last");
  fragment.append(document.createElement("br"));
}

/** Text with its invisible characters marked; how long it is, where not all of it is drawn. */
export function appendPieces(into: HTMLElement, text: string, longest = LONGEST): void {
  if (drawPieces(into, text, longest) < text.length) appendLength(into, text.length);
}

/** Draws up to `longest` characters of a text; returns how many it drew. */
export function drawPieces(into: HTMLElement, text: string, longest: number): number {
  let marks = 0;
  let drawn = 0;
  for (const piece of pieces(text.slice(0, longest))) {
    if (piece.kind !== "text" && marks++ === MOST_MARKS) break;
    drawn += piece.text.length;
    if (piece.kind === "text") into.append(piece.text);
    else if (piece.kind === "newline") into.append(inner("nl", piece.text));
    else if (piece.kind === "tab") into.append(inner("tab", piece.text));
    else {
      const mark = inner("cc", piece.text);
      mark.setAttribute("data-c", piece.code);
      into.append(mark);
    }
  }
  return drawn;
}

/** Says how long a text is of which only the beginning is drawn. */
export function appendLength(into: HTMLElement, characters: number): void {
  const more = document.createElement("span");
  more.className = "more";
  more.setAttribute("data-c", `… ${characters.toLocaleString("en")} characters`);
  into.append(more);
}

function inner(className: string, text: string): HTMLSpanElement {
  const span = document.createElement("span");
  span.className = className;
  span.textContent = text;
  return span;
}

/** Sets the colour class of every token, and its marks: masked ones are hatched, unknown values stay unpainted. */
export function paintTokens(
  container: HTMLElement,
  tokens: ResponseTokens,
  values: ArrayLike<number> | null,
  scale: Scale | null,
  marks: Uint8Array,
): void {
  const spans = tokenSpans(container);
  let before = marked.get(container);
  if (before?.length !== marks.length) before = new Uint8Array(marks.length);
  marked.set(container, marks);
  for (let i = 0; i < spans.length; i++) {
    const node = spans[i] as HTMLElement;
    const name = tokens.mask[i]
      ? values && scale
        ? `tok ${step(values[i] as number, scale)}`
        : "tok none"
      : "tok mask";
    if (node.className !== name) node.className = name;
    const mark = marks[i] as number;
    if (mark === before[i]) continue;
    if (mark) node.setAttribute("data-m", LETTERS[mark] as string);
    else node.removeAttribute("data-m");
  }
}

/** Width of the tokens on a single line, in pixels, rather too much than too little; infinite where a line breaks. */
export function lineWidth(tokens: ResponseTokens): number {
  let width = 0;
  for (let i = 0; i < tokens.n && width < LONGEST; i++) {
    const text = tokens.strings[i] ?? "";
    if (text.includes("\n")) return Infinity;
    width += 4;
    for (const character of text) width += character <= "\u024f" ? 7.8 : 15.6;
  }
  return width;
}

/** Height a response will take once filled, in pixels: keeps the scroll bar still while responses fill. */
export function estimateHeight(tokens: ResponseTokens, width: number): number {
  let characters = 0;
  let breaks = 0;
  for (let i = 0; i < tokens.n; i++) {
    const text = tokens.strings[i] ?? "";
    characters += Math.max(1, Math.min(text.length, LONGEST));
    if (text.includes("\n")) breaks++;
  }
  const perLine = Math.max(10, width / 8.6);
  return (Math.ceil(characters / perLine) + breaks * 0.5) * 24;
}
