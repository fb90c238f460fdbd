/** The constraints of an objective: each apart, and what they come to together. */
import { functionOf } from "./call";
import { isOff } from "./describe";
import type { Prepared } from "./prepared";
import { over, sum, times, timesRows } from "./numbers";
import { FUNCTIONS } from "./parts";
import { perToken, type Constraint, type Ratio } from "./parts/types";
import type { ConstraintTerm, Parts } from "./types";

interface Policy {
  readonly advantages: Float64Array;
  readonly ratio: Ratio;
  /** BT: the aggregation. */
  readonly share: Float64Array;
  /** BT: what the denominators count. */
  readonly counted: Float64Array;
  /** B: how often a response takes part. */
  readonly often: Float64Array;
  /** BT: what multiplies the policy term. */
  readonly detached: Float64Array;
}

interface Terms {
  readonly terms: ConstraintTerm[];
  /** BT: what they take from the objective, per unit of the token's share of the loss. */
  readonly penalty: Float64Array;
  /** BT: their share of the gradient weight. */
  readonly weight: Float64Array;
  readonly loss: number;
  readonly entropyLoss: number;
}

export function constraintTerms(parts: Parts, batch: Prepared, policy: Policy): Terms {
  const terms: ConstraintTerm[] = [];
  const penalty = perToken(batch);
  const weight = perToken(batch);
  let [loss, entropyLoss] = [0, 0];
  parts.constraint.forEach((use, number) => {
    if (isOff(use)) return;
    const part = functionOf("constraint", FUNCTIONS.constraint, use)(batch, policy.advantages, policy.ratio);
    const term = { number, use, ...termOf(part, batch, policy) };
    terms.push(term);
    if (term.attributable) loss += term.loss;
    else entropyLoss += term.loss;
    for (let i = 0; i < penalty.length; i++) {
      penalty[i]! += term.penalty[i]!;
      weight[i]! += term.weight[i]!;
    }
  });
  return { terms, penalty, weight, loss, entropyLoss };
}

function termOf(part: Constraint, batch: Prepared, policy: Policy): Omit<ConstraintTerm, "number" | "use"> {
  const { dLogProb, dLogRatio, attributable = true } = part;
  const own = ownShare(part, batch, policy);
  const penalty = perToken(batch);
  const weight = perToken(batch);
  let loss = 0;
  for (let i = 0; i < own.length; i++) loss += own[i]! * part.penalty[i]!;
  if (!attributable) return { penalty, weight, loss, attributable };
  const pulled =
    dLogRatio === undefined ? null : (part.ratio ?? policy.ratio).pull(times(own, dLogRatio));
  const ranks = batch.normalisers.dataParallelSize;
  for (let i = 0; i < own.length; i++) {
    let total = 0;
    if (dLogProb !== undefined) total += own[i]! * dLogProb[i]!;
    if (pulled !== null) total += pulled[i]!;
    weight[i] = (total * batch.valid[i]!) / ranks;
    if (policy.share[i] !== 0) penalty[i] = (own[i]! * part.penalty[i]!) / policy.share[i]!;
  }
  return { penalty, weight, loss, attributable };
}

/** BT: the share of the loss a token is as far as this constraint goes. */
function ownShare(part: Constraint, batch: Prepared, policy: Policy): Float64Array {
  const { T, mask, valid, invalid, normalisers } = batch;
  const { among = null, beforeWeight = false, attributable = true } = part;
  const own = valid.slice();
  for (let i = 0; i < own.length; i++) {
    if (beforeWeight) own[i]! *= policy.detached[i]!;
    if (among !== null) own[i]! *= among[i]!;
  }
  if (part.tokenMean !== true) return times(policy.share, own);
  // What the whole vocabulary does is averaged over the tokens the policy term is averaged over.
  const counted = attributable ? mask.slice() : timesRows(mask, policy.often, T);
  for (let i = 0; i < counted.length; i++) {
    const isOut = (among !== null && !(among[i]! > 0) && !invalid[i]) || (!attributable && !(policy.counted[i]! > 0));
    if (isOut) counted[i] = 0;
  }
  const tokens = Math.max(sum(counted), 1) * normalisers.accumulationSteps;
  return over(times(own, counted), tokens);
}
