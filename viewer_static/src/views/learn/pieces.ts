/** What a lesson's text is made of. Text of the run stays apart from ours: it is quoted, never markup. */
import { integer, number, probability as probabilityText, short, signed as signedText } from "../../format";
import { isSpecial, oneLine, pieces } from "../../text";
import type { StepResponse } from "../../bundle/step";
import type { Word } from "../words";

export type Piece =
  | string
  /** A number of the bundle: as it is read, and in full. `what` tells what it is. */
  | { readonly value: string; readonly exact: number; readonly what: string }
  /** Text of the model, or of the data set. */
  | { readonly quote: string }
  | { readonly token: string }
  /** A word that is explained on hover. */
  | { readonly word: Word; readonly as?: string };

/** One line of arithmetic: what it gives, and how. */
export interface Line {
  readonly label: string;
  readonly sum: readonly Piece[];
}

export interface Lesson {
  readonly title: string;
  readonly paragraphs: readonly (readonly Piece[])[];
  readonly lines: readonly Line[];
}

export const num = (what: string, exact: number, digits = 3): Piece => ({ value: number(exact, digits), exact, what });
export const signed = (what: string, exact: number, digits = 3): Piece => ({ value: signedText(exact, digits), exact, what });
/** A small number, with three digits that say something: 0.00201. */
export const small = (what: string, exact: number): Piece => ({ value: smallText(exact), exact, what });
/** The same with a plus sign where the sign carries meaning. */
export const fine = (what: string, exact: number): Piece => ({ value: (exact > 0 ? "+" : "") + smallText(exact), exact, what });
/** A number that is often a whole one. */
export const round = (what: string, exact: number): Piece => {
  const near = Math.round(exact);
  return Math.abs(exact - near) < 1e-6 * Math.abs(near) ? amount(what, near) : num(what, exact, 4);
};
export const prob = (what: string, exact: number): Piece => ({ value: probabilityText(exact), exact, what });
/** The number of something: of an update, of a response. */
export const whole = (what: string, exact: number): Piece => ({ value: String(exact), exact, what });
/** How many there are. */
export const amount = (what: string, exact: number): Piece => ({ value: integer(exact), exact, what });
/** A setting, as it was given: 0.2, 1.28. */
export const setting = (what: string, exact: number): Piece => ({ value: short(exact), exact, what });

function smallText(value: number): string {
  const size = Math.abs(value);
  if (!(size >= 1e-6 && size < 1)) return number(value, 3);
  // No exponents for who may never have seen one; no digits that say nothing.
  const digits = size < 1e-4 ? 1 : 2;
  const text = size.toFixed(digits - Math.floor(Math.log10(size)));
  return (value < 0 ? "−" : "") + (size < 1e-3 ? text.replace(/0+$/, "") : text);
}

/** What a response says, on one line and short; "" where its tokens were not captured. */
export function said(response: StepResponse, limit = 110): string {
  const strings = response.passes[0]?.tokens?.strings;
  if (!strings) return "";
  let text = "";
  for (let i = 0; i < strings.length && text.length < limit * 3; i++) {
    const token = strings[i] ?? "";
    if (!isSpecial(token)) text += token;
  }
  return oneLine(text, limit);
}

/** A token as a reader can see it. */
export function tokenText(token: string): string {
  const seen = pieces(token.slice(0, 60))
    .map((piece) => (piece.kind === "text" ? piece.text : piece.kind === "newline" ? "↵" : piece.kind === "tab" ? "→" : piece.code))
    .join("")
    .trim();
  return seen || (token ? "␣" : "(empty)");
}

/** `2 responses` with the number as one of the bundle's. */
export function many(what: string, n: number, one: string, more = `${one}s`): Piece[] {
  return [amount(what, n), ` ${n === 1 ? one : more}`];
}

/** The first sentences of an explanation. */
export function sentences(text: string, most = 2): string {
  return text.split(/(?<=[.!?])\s+/).slice(0, most).join(" ");
}

/** Pieces in a row: "a", "a and b", "a, b and c". */
export function listed(items: readonly (readonly Piece[])[]): Piece[] {
  return items.flatMap((item, i) => (i === 0 ? item : [i === items.length - 1 ? " and " : ", ", ...item]));
}
