/** What a trainer says of a response beside its reward, as a reader sees it: names and texts come from the run. */
import type { StepResponse } from "../../bundle/step";
import { short } from "../../format";
import { cut, oneLine } from "../../text";

export interface Label {
  readonly name: string;
  readonly value: string;
  /** Both of them, as far as a tip has room. */
  readonly tip: string;
}

/** Labels that are drawn, and letters of each that are. */
const MOST = 8;
const LONGEST = 24;
const TIP = 300;

export type Said = StepResponse["labels"];

/** What is said of every response alike: once is enough. */
export function sharedLabels([first, ...others]: readonly StepResponse[]): Said {
  if (!first || !others.length) return new Map();
  return new Map([...first.labels].filter(([name, value]) => others.every(({ labels }) => labels.get(name) === value)));
}

/** What is said of one response, without what is said of all. */
export function ownLabels({ labels }: StepResponse, shared: Said): Said {
  return new Map([...labels].filter(([name]) => !shared.has(name)));
}

/** Labels as they are drawn, and how many there are besides. */
export function written(labels: Said): { drawn: Label[]; more: number } {
  const drawn = [...labels].slice(0, MOST).map(([name, value]) => {
    const text = typeof value === "number" ? numeral(value) : oneLine(value, TIP);
    return { name: cut(oneLine(name), LONGEST), value: cut(text, LONGEST), tip: `${oneLine(name)}: ${text}` };
  });
  return { drawn, more: labels.size - drawn.length };
}

/** A whole number is a count or a version: all of its digits. */
function numeral(value: number): string {
  return Number.isSafeInteger(value) ? String(value).replace("-", "−") : short(value);
}
