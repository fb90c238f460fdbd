/** Hyper-parameters as controls: which of them, over which range. */
import { type AlgorithmSpec, algorithms, describePart, type HyperParameter, hyperParameters, type Slot, uses } from "../../objective";
import type { SingleSlot } from "../../analysis/swap";

/** Slots whose numbers people turn first: the rest is under "more". */
const FIRST: ReadonlySet<Slot> = new Set(["bounds", "gate", "weight", "mask", "constraint"]);

export interface Range {
  low: number;
  high: number;
  step: number;
}

/** A slider's range around a value: wide enough to see what it does, within what the part allows. */
export function range({ value, description }: HyperParameter): Range {
  const fallback = typeof description.default === "number" ? description.default : 1;
  const now = typeof value === "number" && Number.isFinite(value) ? value : fallback;
  const size = Math.abs(now) || Math.abs(fallback) || 0.1;
  const { minimum, above, maximum, below } = description;
  const top = maximum ?? below;
  const bottom = minimum ?? above;
  const high = top !== undefined && top <= size * 5 + 1 ? top : nice(Math.max((bottom ?? 0) + size * 2.5, now));
  const low = bottom ?? (top !== undefined && top <= 0 ? -nice(size * 2.5) : now < 0 || fallback < 0 ? -high : 0);
  if (description.integer === true) return { low, high, step: 1 };
  return { low, high, step: nice((high - low) / 100 || 1) };
}

/** The next round number: 1, 2 or 5 times a power of ten. */
function nice(value: number): number {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * unit).find((each) => each >= value * (1 - 1e-9)) ?? value;
}

/** Whether the description allows the number. */
export function allowed({ description }: HyperParameter, value: number): boolean {
  const { minimum = -Infinity, maximum = Infinity, above = -Infinity, below = Infinity } = description;
  return Number.isFinite(value) && value >= minimum && value <= maximum && value > above && value < below && (description.integer !== true || Number.isInteger(value));
}

/** Those people turn first, and the rest. Constraints that are off have their coefficient among the first. */
export function knobs(spec: AlgorithmSpec): { first: HyperParameter[]; more: HyperParameter[] } {
  const all = hyperParameters(spec);
  const isFirst = (each: HyperParameter) => FIRST.has(each.slot) && typeof each.value === "number" && !each.path.startsWith("mixture");
  return { first: all.filter(isFirst), more: all.filter((each) => !isFirst(each)) };
}

/** Every part the registry knows for a slot, by name. */
export function choices(slot: SingleSlot): { part: string; title: string }[] {
  const names = new Set<string>();
  for (const spec of algorithms.values()) {
    if (spec.display) continue;
    for (const each of uses(spec.parts)) if (each.slot === slot) names.add(each.use.part);
  }
  return [...names].map((part) => ({ part, title: describePart(slot, part)?.title ?? part })).sort((a, b) => a.title.localeCompare(b.title));
}
