/** One objective on a batch: from advantages to what every token adds to the loss. A mixture has several. */
import { judged, multiplicities, withoutDroppedGroups } from "./advantages";
import { functionOf } from "./call";
import { constraintTerms } from "./constraints";
import type { Prepared } from "./prepared";
import { times, timesRows } from "./numbers";
import { FUNCTIONS } from "./parts";
import { perToken } from "./parts/types";
import type { ConstraintTerm, Parts } from "./types";

/** What parts of an `Evaluation` have a value a token and add up over the components of a mixture. */
export interface PerToken {
  advantages: Float64Array;
  ratio: Float64Array;
  logRatio: Float64Array;
  policyObjective: Float64Array;
  constraint: Float64Array;
  policyWeight: Float64Array;
  constraintWeight: Float64Array;
  mask: Float64Array;
  weight: Float64Array;
  aggregation: Float64Array;
}

export interface Objective extends PerToken {
  low: Float64Array;
  high: Float64Array;
  clipped: Uint8Array;
  constraints: ConstraintTerm[];
  policyLoss: number;
  constraintLoss: number;
  entropyLoss: number;
  notes: readonly string[];
}

/** One objective; `denominator` (BT) is what the denominators count. */
export function objectiveOf(parts: Parts, whole: Prepared, denominator: Float64Array): Objective {
  const { T, valid } = whole;
  const often = multiplicities(parts, whole);
  const kept = withoutDroppedGroups(whole, often);
  const { values: advantages, notes } = judged(parts, kept);
  const batch = often.some((value) => value !== 1) ? whole.repeating(often) : whole;
  const bounds = functionOf("bounds", FUNCTIONS.bounds, parts.bounds)(kept, advantages);
  const ratio = functionOf("ratio", FUNCTIONS.ratio, parts.ratio)(batch, advantages, bounds);
  const gate = functionOf("gate", FUNCTIONS.gate, parts.gate)(kept, advantages, ratio, bounds);

  const counted = timesRows(denominator, often, T);
  const factor = valid.slice();
  for (const use of parts.mask) {
    const mask = functionOf("mask", FUNCTIONS.mask, use)(kept, advantages, ratio);
    for (let i = 0; i < factor.length; i++) {
      factor[i]! *= mask.keep[i]!;
      if (mask.denominator) counted[i]! *= mask.keep[i]!;
    }
  }
  const weight = perToken(batch).fill(1);
  for (const use of parts.weight) {
    const own = functionOf("weight", FUNCTIONS.weight, use)(batch);
    for (let i = 0; i < weight.length; i++) weight[i]! *= own[i]!;
  }
  const share = functionOf("aggregation", FUNCTIONS.aggregation, parts.aggregation)(batch, counted);
  const detached = times(factor, weight);

  const ranks = batch.normalisers.dataParallelSize;
  const policyWeight = policyWeights(gate, ratio.pull, share, detached);
  const policyObjective = perToken(batch);
  const codes = gate.clipped ?? ratio.clipped;
  const clipped = new Uint8Array(valid.length);
  const low = bounds.low.slice();
  const keep = perToken(batch);
  let policyLoss = 0;
  for (let i = 0; i < policyObjective.length; i++) {
    const isCounted = counted[i]! > 0 ? 1 : 0;
    policyWeight[i] = (policyWeight[i]! * valid[i]!) / ranks;
    policyObjective[i] = detached[i]! * gate.objective[i]! * isCounted;
    policyLoss -= share[i]! * policyObjective[i]!;
    keep[i] = factor[i]! * isCounted;
    if (codes !== null) clipped[i] = codes[i]! * valid[i]!;
    // The ratio is above 0: a lowest one of 0 is none.
    if (low[i]! <= 0) low[i] = -Infinity;
  }
  const terms = constraintTerms(parts, kept, { advantages, ratio, share, counted, often, detached });
  return {
    advantages: times(advantages, batch.mask),
    ratio: times(ratio.value, batch.mask),
    logRatio: times(ratio.log, batch.mask),
    low,
    high: bounds.high,
    policyObjective,
    policyWeight,
    constraint: terms.penalty,
    constraintWeight: terms.weight,
    clipped,
    mask: keep,
    weight: times(weight, batch.mask),
    aggregation: share,
    constraints: terms.terms,
    policyLoss,
    constraintLoss: terms.loss,
    entropyLoss: terms.entropyLoss,
    notes,
  };
}

/** ∂loss/∂log_probs of the policy term, before what is not finite is left out. */
function policyWeights(
  gate: { readonly dLogRatio: Float64Array | null; readonly dLogProb: Float64Array | null },
  pull: (d: Float64Array) => Float64Array,
  share: Float64Array,
  detached: Float64Array,
): Float64Array {
  const slope = times(share, detached);
  const weights = new Float64Array(share.length);
  const { dLogRatio, dLogProb } = gate;
  if (dLogRatio !== null) {
    const pulled = pull(times(slope, dLogRatio));
    for (let i = 0; i < weights.length; i++) weights[i]! -= pulled[i]!;
  }
  if (dLogProb !== null) for (let i = 0; i < weights.length; i++) weights[i]! -= slope[i]! * dLogProb[i]!;
  return weights;
}
