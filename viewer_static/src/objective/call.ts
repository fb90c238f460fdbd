/** From a part as an algorithm uses it to its function. */
import { describePart } from "./registry";
import { parameters } from "./describe";
import type { Table } from "./parts/types";
import { AlgorithmError, type PartUse, type Slot } from "./types";
import { shown } from "./words";

/** The function of a part, with its hyper-parameters. Throws AlgorithmError where this page has no code for it. */
export function functionOf<Arguments extends readonly unknown[], Result>(
  slot: Slot,
  table: Table<Arguments, Result>,
  use: PartUse,
): (...given: [...Arguments]) => Result {
  if (describePart(slot, use.part) === null || !Object.hasOwn(table, use.part)) {
    throw new AlgorithmError(`there is no code for the ${slot} part ${shown(use.part)} on this page`);
  }
  const values = parameters(slot, use) as never;
  return (...given) => table[use.part]!(...given, values);
}
