/** The slots of an algorithm, in the order they are applied and read. */
import type { Heading, Parts, PartUse, Slot } from "./types";

/** Slot → the heading of UNIPO's it refines. */
export const SLOTS: Readonly<Record<Slot, Heading>> = {
  filter: "mask",
  reward: "advantage",
  baseline: "advantage",
  scale: "advantage",
  modulation: "advantage",
  ratio: "objective",
  bounds: "objective",
  gate: "objective",
  weight: "objective",
  mask: "mask",
  constraint: "constraint",
  aggregation: "aggregation",
};

/** UNIPO's five levels, in reading order. */
export const HEADINGS: Readonly<Record<Heading, string>> = {
  advantage: "Advantage",
  objective: "Per-token objective",
  constraint: "Constraint",
  mask: "Mask",
  aggregation: "Aggregation",
};

export const SLOT_NAMES = Object.keys(SLOTS) as readonly Slot[];

/** Slots that hold a list of parts. */
const LISTS = ["filter", "reward", "scale", "modulation", "weight", "mask", "constraint"] as const;
export type ListSlot = (typeof LISTS)[number];

export function isList(slot: Slot): slot is ListSlot {
  return (LISTS as readonly Slot[]).includes(slot);
}

/** The parts of a slot as a list, whether or not it holds one. */
export function inSlot(parts: Parts, slot: Slot): readonly PartUse[] {
  const value: PartUse | readonly PartUse[] = parts[slot];
  return Array.isArray(value) ? value : [value as PartUse];
}

/** Parts with some slots replaced. */
export function merged(base: Parts, changes: Partial<Parts>): Parts {
  return { ...base, ...changes };
}
