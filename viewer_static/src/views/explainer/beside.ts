/** A slot that is the same part in two algorithms, in one line. */
import type { Slot } from "../../objective";
import type { SlotCards } from "./cards";

const SYMBOLS: ReadonlyMap<Slot, string> = new Map([
  ["baseline", "Â"], ["scale", "Â"], ["modulation", "Â"], ["ratio", "ρ"], ["constraint", "penalty"], ["aggregation", "a"], ["mask", "m"], ["weight", "w"], ["gate", "policy term"],
]);

/** `equal`: one number, or none at all; `apart`: two; `lacking`: one of the two could not be computed. */
export interface Alike {
  kind: "equal" | "apart" | "lacking";
  words: string;
}

/** What the slot comes to in both at the token. A number is never said of the one it was not computed for. */
export function alike(cards: SlotCards, other: SlotCards, names: readonly [string, string]): Alike {
  const [a, b] = [cards, other].map((each) => each.parts.at(-1)?.outcome ?? "") as [string, string];
  const symbol = SYMBOLS.get(cards.slot) ?? "value";
  if (cards.idle) return { kind: "equal", words: cards.idle };
  if (!a && !b) return { kind: "equal", words: cards.parts[0]?.title ?? "" };
  if (!a || !b) return { kind: "lacking", words: `${symbol} = ${a || b}; not computed for ${a ? names[1] : names[0]}` };
  return a === b ? { kind: "equal", words: `${symbol} = ${a}` } : { kind: "apart", words: `${symbol} = ${a} and ${b}` };
}
