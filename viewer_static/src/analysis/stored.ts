/**
 * An algorithm this page has no code for, or not all inputs: its token objectives and gradient weights were stored when
 * the update was captured. What else is known of it is computed around them; what is not is NaN.
 */
import {
  type AlgorithmSpec,
  asRecorded,
  describePart,
  evaluate,
  type Evaluation,
  needs,
  type Parts,
  type PartUse,
  type Slot,
} from "../objective";
import { batchOf, type MicroBatch, padded } from "./batches";
import type { Captured } from "./captured";
import { onlySlots, partsOf, withParts } from "./plan";

const RESULTS = ["token_objective", "gradient_weight"] as const;

/** Whether the update holds what its algorithm came to. */
export function hasStored({ step }: Captured): boolean {
  return RESULTS.every((name) => step.channels.has(name));
}

export function storedNote(why: string): string {
  return `Objective and push of every token are those that were stored while training. ${why}`;
}

/** The run's own algorithm on a micro-batch, its results as they were stored. */
export function storedEvaluation(captured: Captured, of: MicroBatch, spec: AlgorithmSpec): Evaluation {
  const has = {
    baseline: captured.channels.has("advantages"),
    ratio: isKnown(captured, spec, "ratio"),
    bounds: isKnown(captured, spec, "ratio") && isKnown(captured, spec, "bounds"),
    mask: isKnown(captured, spec, "mask"),
    aggregation: isKnown(captured, spec, "aggregation"),
  };
  const parts: Partial<Parts> = {
    ...(has.baseline && { baseline: { part: "recorded" } }),
    ...(has.ratio && { ratio: spec.parts.ratio }),
    ...(has.bounds && { bounds: spec.parts.bounds }),
    ...(has.mask && { mask: spec.parts.mask }),
    ...(has.aggregation && { aggregation: spec.parts.aggregation }),
  };
  const around = withParts(onlySlots(spec, []), parts);
  const recorded = has.baseline ? asRecorded(around, captured.channels) : around;
  const found = evaluate(recorded, batchOf(of));
  const [tokenObjective, gradientWeight] = RESULTS.map((name) => {
    return padded(name, of.passes, of.T).map((value) => (Number.isFinite(value) ? value : 0));
  }) as [Float64Array, Float64Array];
  const unknown = new Float64Array(tokenObjective.length).fill(NaN);
  const zeros = new Float64Array(tokenObjective.length);
  let loss = 0;
  let magnitude = 0;
  for (let i = 0; i < tokenObjective.length; i++) {
    const value = found.aggregation[i]! * tokenObjective[i]!;
    loss -= value;
    magnitude += Math.abs(value);
  }
  if (!has.aggregation) loss = NaN;
  return {
    ...found,
    spec,
    advantages: has.baseline ? found.advantages : unknown,
    ratio: has.ratio ? found.ratio : unknown,
    logRatio: has.ratio ? found.logRatio : unknown,
    low: has.bounds ? found.low : unknown,
    high: has.bounds ? found.high : unknown,
    policyObjective: tokenObjective,
    constraint: zeros,
    tokenObjective,
    policyWeight: gradientWeight,
    constraintWeight: zeros,
    gradientWeight,
    clipped: new Uint8Array(zeros.length),
    mask: has.mask ? found.mask : unknown,
    weight: unknown,
    aggregation: has.aggregation ? found.aggregation : unknown,
    constraints: [],
    policyLoss: loss,
    constraintLoss: 0,
    entropyLoss: 0,
    loss,
    magnitude,
  };
}

/** Whether what is in a slot can be computed: this page has code for it and its inputs were captured. */
function isKnown(captured: Captured, spec: AlgorithmSpec, slot: Slot): boolean {
  if (spec.display) return false;
  if (!partsOf(spec.parts, slot).every((use: PartUse) => describePart(slot, use.part) !== null)) return false;
  return needs(onlySlots(spec, [slot])).every((name) => captured.channels.has(name));
}
