/** A what-if's changes: hyper-parameters by path as the engine takes them, and another part for a slot (`aggregation.part`). */
import { AlgorithmError, type AlgorithmSpec, describePart, withHyperParameters } from "../objective";
import { cut } from "../text";

/** Characters of a name or value from outside that are repeated in a message. */
const LONGEST = 40;

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

export interface Fitting {
  readonly spec: AlgorithmSpec;
  /** The changes that were made. */
  readonly made: Readonly<Record<string, unknown>>;
  /** Those that could not be, in words: `foo=1 was left out: GRPO has no hyper-parameter foo`. */
  readonly refused: readonly string[];
}

/** The changes that fit: a link may name some that never could be, and the others still hold. Never throws. */
export function withFitting(spec: AlgorithmSpec, changes: Readonly<Record<string, unknown>>): Fitting {
  const made: Record<string, unknown> = {};
  const refused: string[] = [];
  let fitting = spec;
  // Parts are exchanged first: the other changes may be of theirs.
  const all = Object.entries(changes).sort(([a], [b]) => Number(PART.test(b)) - Number(PART.test(a)));
  for (const [path, value] of all) {
    try {
      fitting = withChanges(fitting, { [path]: value });
      made[path] = value;
    } catch (error) {
      refused.push(`${cut(path, LONGEST)}=${cut(JSON.stringify(value), LONGEST)} was left out: ${reason(spec, path, error)}.`);
    }
  }
  return { spec: fitting, made, refused };
}

/** Why a change was refused, without the list of everything there is. */
function reason(spec: AlgorithmSpec, path: string, error: unknown): string {
  const words = error instanceof Error ? error.message : String(error);
  if (words.startsWith(`${spec.id} has no hyper-parameter`)) return `${spec.name || spec.id} has no hyper-parameter ${cut(path, LONGEST)}`;
  return (words.startsWith(`${path}: `) ? words.slice(path.length + 2) : words).slice(0, 200).replace(/\.$/, "");
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
