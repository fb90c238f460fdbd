/** How two algorithms differ: slot by slot, in words. */
import { parameters } from "./describe";
import { HEADINGS, SLOTS, SLOT_NAMES, inSlot } from "./slots";
import type { AlgorithmSpec, Difference, PartUse, Slot } from "./types";
import { numberText } from "./words";

/** The slots in which two algorithms differ, with both values written out, defaults included. */
export function differences(a: AlgorithmSpec, b: AlgorithmSpec): Difference[] {
  const found: Difference[] = SLOT_NAMES.map((slot) => ({
    slot,
    heading: HEADINGS[SLOTS[slot]],
    a: writtenSlot(a, slot),
    b: writtenSlot(b, slot),
  }));
  found.push({ slot: "mixture", heading: "Mixture", a: mixture(a), b: mixture(b) });
  return found.filter((each) => each.a !== each.b);
}

function writtenSlot(spec: AlgorithmSpec, slot: Slot): string {
  const every = inSlot(spec.parts, slot).map((use) => written(slot, use));
  return every.join(" then ") || "none";
}

/** A part as it is used, on one line: `ppo_clip(dual_clip=3)`; hyper-parameters that are null are left out. */
export function written(slot: Slot, use: PartUse): string {
  const values = Object.entries(parameters(slot, use))
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name}=${plain(value)}`);
  return values.length > 0 ? `${use.part}(${values.join(", ")})` : use.part;
}

/** A value as Python writes it, but whole numbers without ".0": JSON does not tell 3 from 3.0 here. */
function plain(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "number") return numberText(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  return json(value);
}

/** JSON with a space after every comma and colon. */
function json(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(json).join(", ")}]`;
  if (typeof value === "number") return numberText(value);
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([name, each]) => `${JSON.stringify(name)}: ${json(each)}`)
    .join(", ")}}`;
}

function mixture(spec: AlgorithmSpec): string {
  const components = spec.mixture.map(
    ({ coefficient, source, denominator, statistics, parts }) =>
      `${numberText(coefficient)} × rows of source ${source}, denominator ${denominator}, ` +
      `statistics ${statistics}, with ${json(parts)}`,
  );
  return components.join("; ") || "none";
}
