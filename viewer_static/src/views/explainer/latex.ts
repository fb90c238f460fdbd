/** Writing numbers on the symbols of a LaTeX formula: pure text to text. What Temml makes of the marks is in `math.ts`. */

/** How a number is written: beneath its symbol, in the symbol's place, or not at all (the symbol still explains itself). */
export type Written = "under" | "instead" | "bare";

export interface Mark {
  /** The symbol as the formula writes it: `\hat A_i`, `\rho_{\min}`. */
  symbol: string;
  how: Written;
  /** Whether further symbols inside it are marked as well, none of them with a number beneath. */
  outer?: boolean;
}

/** Stands around a mark's number in the LaTeX: characters that no formula uses. */
export const OPEN = "\u2983";
export const CLOSE = "\u2984";

const COMMAND = /^\\(?:[a-zA-Z]+|[^a-zA-Z])/;
/** Commands whose argument is text and not symbols. */
const TEXT = new Set(["\\text", "\\operatorname", "\\mathrm", "\\begin", "\\end", "\\textstyle", "\\mathbf", "\\mathcal"]);

/**
 * The formula with `marks[n]` as `\underset{⦃n⦄}{symbol}` wherever the symbol stands by itself: not in an index, not as the
 * beginning of a longer symbol, not in text. `count` is how often each mark was found.
 */
export function annotate(latex: string, marks: readonly Mark[]): { latex: string; found: Set<number> } {
  const found = new Set<number>();
  const order = marks.map((mark, n) => ({ ...mark, n })).sort((a, b) => b.symbol.length - a.symbol.length);
  return { latex: walk(latex, order, found, false), found };
}

type Numbered = Mark & { n: number };

function walk(latex: string, marks: readonly Numbered[], found: Set<number>, inside: boolean): string {
  let out = "";
  let i = 0;
  while (i < latex.length) {
    const mark = marks.find((each) => stands(latex, i, each.symbol));
    if (mark) {
      // Its number once: a formula that repeats a symbol stays readable.
      const again = found.has(mark.n);
      found.add(mark.n);
      const rest = marks.filter((each) => each !== mark && each.symbol !== mark.symbol);
      const base = mark.outer ? walk(mark.symbol, rest, found, true) : mark.symbol;
      const how = (inside || again) && mark.how === "under" ? "bare" : mark.how;
      out += `\\underset{\\text{${OPEN}${mark.n}${how[0]}${CLOSE}}}{${base}}`;
      i += mark.symbol.length;
      continue;
    }
    const rest = latex.slice(i);
    const script = /^[_^]\s*/.exec(rest)?.[0];
    if (script) {
      const end = argumentEnd(latex, i + script.length);
      out += latex.slice(i, end);
      i = end;
      continue;
    }
    const command = COMMAND.exec(rest)?.[0];
    if (command) {
      let end = i + command.length;
      if (TEXT.has(command) && latex[end] === "{") end = argumentEnd(latex, end);
      out += latex.slice(i, end);
      i = end;
      continue;
    }
    out += latex[i];
    i++;
  }
  return out;
}

/** Whether the symbol is at `at` and is not the beginning of a longer one. */
function stands(latex: string, at: number, symbol: string): boolean {
  if (!symbol || !latex.startsWith(symbol, at)) return false;
  const after = latex.slice(at + symbol.length);
  if (/^[_^']/.test(after)) return false;
  return !(/\\[a-zA-Z]+$/.test(symbol) && /^[a-zA-Z]/.test(after));
}

/** Where the argument that begins at `at` ends: a group in braces, a command, or one character. */
function argumentEnd(latex: string, at: number): number {
  if (latex[at] === "{") {
    let depth = 0;
    for (let i = at; i < latex.length; i++) {
      if (latex[i] === "\\") i++;
      else if (latex[i] === "{") depth++;
      else if (latex[i] === "}" && --depth === 0) return i + 1;
    }
    return latex.length;
  }
  const command = COMMAND.exec(latex.slice(at))?.[0];
  return Math.min(latex.length, at + (command?.length ?? 1));
}

const OPENING = new Set(["\\left", "\\begin", "{"]);
const CLOSING = new Set(["\\right", "\\end", "}"]);

/** A formula at its top-level `\qquad`: statements that may each stand on a line. */
export function statements(latex: string): string[] {
  const found: string[] = [];
  let [depth, from] = [0, 0];
  for (let i = 0; i < latex.length; ) {
    const each = COMMAND.exec(latex.slice(i))?.[0] ?? latex.charAt(i);
    i += each.length;
    if (OPENING.has(each)) depth++;
    else if (CLOSING.has(each)) depth--;
    else if (each === "\\qquad" && depth === 0) {
      found.push(latex.slice(from, i - each.length));
      from = i;
    }
  }
  return [...found, latex.slice(from)];
}

/** A formula at its first top-level `=` or `\leftarrow`: what is defined, and all from the sign on; no left side where there is none. */
export function sides(latex: string): [string, string] {
  let depth = 0;
  for (let i = 0; i < latex.length; i++) {
    const c = latex[i];
    if (c === "\\") {
      const command = COMMAND.exec(latex.slice(i))?.[0] ?? "\\";
      // What follows says of a symbol what it is: the formula itself defines nothing.
      if (depth === 0 && command === "\\qquad") return ["", latex];
      if (depth === 0 && command === "\\leftarrow") return [latex.slice(0, i), latex.slice(i)];
      i += command.length - 1;
    } else if (c === "{" || c === "[" || c === "(") depth++;
    else if (c === "}" || c === "]" || c === ")") depth--;
    else if (c === "=" && depth === 0) return [latex.slice(0, i), latex.slice(i)];
  }
  return ["", latex];
}
