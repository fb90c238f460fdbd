/** Algorithms as a person picks them, and texts from outside as they are shown. */
import type { AlgorithmSpec } from "../../objective";
import { cut, type Piece, pieces } from "../../text";

/** Characters of a token that are shown in a line. */
const LONGEST = 60;

const MARKS: Readonly<Record<Exclude<Piece["kind"], "text">, string>> = { newline: "↵", tab: "→", control: "�" };

/** A token with what cannot be seen made visible, cut where it is endless. */
export function visible(text: string): string {
  if (text === "") return "end";
  const line = cut(text, LONGEST);
  if (/^ +$/.test(line)) return "␣".repeat(line.length);
  return pieces(line).map((piece) => (piece.kind === "text" ? piece.text : MARKS[piece.kind])).join("");
}

/** What an algorithm is called on the page. */
export function titleOf(spec: AlgorithmSpec): string {
  return (spec.name || spec.id).slice(0, 80);
}

export interface Family {
  name: string;
  algorithms: readonly AlgorithmSpec[];
}

/** Algorithms that fit a search, by family in the order families first appear; exact ones first in each. */
export function families(all: Iterable<AlgorithmSpec>, search: string): Family[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = new Map<string, AlgorithmSpec[]>();
  for (const spec of all) {
    const text = `${spec.id} ${spec.name} ${spec.title} ${spec.family} ${spec.year ?? ""}`.toLowerCase();
    if (!words.every((word) => text.includes(word))) continue;
    const family = spec.family || "The run’s own";
    const known = found.get(family);
    if (known) known.push(spec);
    else found.set(family, [spec]);
  }
  return [...found]
    .map(([name, algorithms]) => ({ name, algorithms: algorithms.sort((a, b) => Number(b.exact) - Number(a.exact) || a.name.localeCompare(b.name)) }))
    .sort((a, b) => order(a.name) - order(b.name) || a.name.localeCompare(b.name));
}

const FIRST = ["The run’s own", "PPO and GRPO", "REINFORCE", "Clip and gate", "Sequence ratios"];

function order(family: string): number {
  const at = FIRST.indexOf(family);
  return at < 0 ? FIRST.length : at;
}
