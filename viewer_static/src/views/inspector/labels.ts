/** What a trainer says of a response beside its reward, as a reader sees it: names and texts come from the run. */
import type { StepResponse } from "../../bundle/step";
import { short } from "../../format";
import { cut, oneLine } from "../../text";

export interface Label {
  readonly name: string;
  readonly value: string;
  /** Both of them, as far as a tip has room. */
  readonly tip: string;
  /** Whether it tells one thing from all others, and a reader nothing. */
  readonly isIdentifier: boolean;
}

/** Labels that are drawn, and letters of each that are. */
const MOST = 8;
const LONGEST = 24;
const TIP = 300;
const IDENTIFIER = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

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

/** Labels as they are drawn, identifiers last, and how many there are besides. */
export function written(labels: Said): { drawn: Label[]; more: number } {
  const isIdentifier = (value: string | number) => typeof value === "string" && IDENTIFIER.test(value);
  const told = [...versions(labels)].sort(([, a], [, b]) => Number(isIdentifier(a)) - Number(isIdentifier(b)));
  const drawn = told.slice(0, MOST).map(([name, value]) => {
    const text = typeof value === "number" ? numeral(value) : oneLine(value, TIP);
    return { name: cut(oneLine(name), LONGEST), value: cut(text, LONGEST), tip: `${oneLine(name)}: ${text}`, isIdentifier: isIdentifier(value) };
  });
  return { drawn, more: told.length - drawn.length };
}

const [EARLIEST, LATEST] = ["min_global_steps", "max_global_steps"];

/** The two by which verl says which weights sampled a response, as the one thing they say. */
function versions(labels: Said): Said {
  const [earliest, latest] = [labels.get(EARLIEST), labels.get(LATEST)];
  if (typeof earliest !== "number" || typeof latest !== "number") return labels;
  const steps = earliest === latest ? `step ${numeral(latest)}` : `steps ${numeral(earliest)} to ${numeral(latest)}`;
  return new Map([...labels].flatMap(([name, value]): [string, string | number][] => (name === EARLIEST ? [["sampled with weights of", steps]] : name === LATEST ? [] : [[name, value]])));
}

/** A whole number is a count or a version: all of its digits. */
function numeral(value: number): string {
  return Number.isSafeInteger(value) ? String(value).replace("-", "−") : short(value);
}
