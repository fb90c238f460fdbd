/** A what-if's changes: hyper-parameters by path as the engine takes them, and another part for a slot (`aggregation.part`). */
import { AlgorithmError, type AlgorithmSpec, describePart, withHyperParameters } from "../objective";

const PART = /^(ratio|bounds|gate|baseline|aggregation)\.part$/;

/** Slots that hold one part: what of an algorithm can be exchanged by itself. */
export type SingleSlot = "ratio" | "bounds" | "gate" | "baseline" | "aggregation";

/** Throws AlgorithmError where a part or a value cannot be. A part that is exchanged starts from its defaults. */
export function withChanges(spec: AlgorithmSpec, changes: Readonly<Record<string, unknown>>): AlgorithmSpec {
  const rest: Record<string, unknown> = {};
  let parts = spec.parts;
  for (const [path, value] of Object.entries(changes)) {
    const slot = PART.exec(path)?.[1] as SingleSlot | undefined;
    if (!slot) rest[path] = value;
    else if (!describePart(slot, String(value))) throw new AlgorithmError(`${path}: there is no part of that name`);
    else if (typeof value === "string" && value !== parts[slot].part) parts = { ...parts, [slot]: { part: value } };
  }
  return withHyperParameters(parts === spec.parts ? spec : { ...spec, parts }, rest);
}

/** The changes without those that belonged to a part that is exchanged, and with the new one. */
export function swapped(
  changes: Readonly<Record<string, unknown>>,
  slot: SingleSlot,
  part: string,
  own: string,
): Record<string, unknown> {
  const kept = Object.entries(changes).filter(([path]) => !path.startsWith(`${slot}.`));
  return part === own ? Object.fromEntries(kept) : { ...Object.fromEntries(kept), [`${slot}.part`]: part };
}
