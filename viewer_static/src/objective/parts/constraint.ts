/** Constraint: terms of the loss beside the policy term, with their derivatives in closed form. */
import type { Prepared } from "../prepared";
import { cappedExp, clip, mean, order, scaled, sum } from "../numbers";
import { mostEntropic } from "./mask";
import { logRatio, sequenceMean, tokenRatio } from "./ratio";
import { perToken, type Constraint, type Ratio, type Table } from "./types";

/**
 * Value and derivative by log π_θ of an estimator of KL(π_θ ‖ π_ref), from log π_θ − log π_ref.
 *
 * k1, k2, k3 as in http://joschu.net/blog/kl-approx.html; `k1+`, `k3+` and `abs+` keep their value and take the
 * gradient of k2 (verl's kl_penalty). `clamp` is verl's: ±20 on the log-ratio, ±10 on k3's value.
 */
export function klTerms(
  log: Float64Array,
  estimator: string,
  clamp: number | null,
): { value: Float64Array; slope: Float64Array } {
  const value = new Float64Array(log.length);
  const slope = new Float64Array(log.length);
  switch (estimator.replace("+", "")) {
    case "k1":
      value.set(log);
      slope.fill(1);
      break;
    case "k2":
      for (let i = 0; i < log.length; i++) value[i] = 0.5 * log[i]! * log[i]!;
      slope.set(log);
      break;
    case "abs":
      for (let i = 0; i < log.length; i++) {
        value[i] = Math.abs(log[i]!);
        slope[i] = Math.sign(log[i]!);
      }
      break;
    default:
      k3(log, clamp, value, slope);
  }
  return { value, slope: estimator.endsWith("+") ? log : slope };
}

function k3(log: Float64Array, clamp: number | null, value: Float64Array, slope: Float64Array): void {
  for (let i = 0; i < log.length; i++) {
    const x = log[i]!;
    const inverse = clamp === null ? -x : clip(-x, -20, 20);
    const ratio = cappedExp(inverse);
    const estimate = ratio - inverse - 1;
    const isInside = clamp === null || (Math.abs(x) <= 20 && Math.abs(estimate) <= clamp);
    slope[i] = isInside ? 1 - ratio : 0;
    value[i] = clamp === null ? estimate : clip(estimate, -clamp, clamp);
  }
}

/** 1 on the share of the tokens that count with the largest (A − mean A)(log π − mean log π). */
function topCovariance(batch: Prepared, advantages: Float64Array, share: number): Float64Array {
  const chosen = perToken(batch);
  const places: number[] = [];
  batch.valid.forEach((is, i) => is > 0 && places.push(i));
  if (places.length === 0) return chosen;
  const logProbs = batch.get("log_probs");
  const advantageMean = mean(places.map((i) => advantages[i]!));
  const logProbMean = mean(places.map((i) => logProbs[i]!));
  const covariance = places.map((i) => -((advantages[i]! - advantageMean) * (logProbs[i]! - logProbMean)));
  const size = Math.max(1, Math.trunc(places.length * share));
  for (const place of order(covariance).subarray(0, size)) chosen[places[place]!] = 1;
  return chosen;
}

export const CONSTRAINT = {
  /**
   * β · an estimate of the divergence from another policy; with `times_ratio` multiplied by the ratio.
   *
   * `level` is that ratio's: `same` for the policy term's own, or of a `token`, or a response's `sequence_mean`.
   */
  kl(
    batch: Prepared,
    _advantages,
    own,
    values: {
      beta: number;
      estimator: string;
      reference: string;
      times_ratio: boolean;
      level: string;
      before_weight: boolean;
      clamp: number | null;
    },
  ) {
    const { beta, level, before_weight: beforeWeight } = values;
    const { value, slope } = klTerms(logRatio(batch, values.reference), values.estimator, values.clamp);
    if (!values.times_ratio) return { penalty: scaled(value, beta), dLogProb: scaled(slope, beta), beforeWeight };
    const ratio =
      level === "token"
        ? tokenRatio(batch, "old_log_probs", null)
        : level === "sequence_mean"
          ? sequenceMean(batch, "old_log_probs")
          : own;
    const penalty = value.map((each, i) => beta * each * ratio.value[i]!);
    const dLogProb = slope.map((each, i) => beta * each * ratio.value[i]!);
    return { penalty, dLogProb, dLogRatio: penalty, beforeWeight, ratio };
  },

  /** β · |log ratio| on the tokens where advantage and log-prob vary together the most (KL-Cov). */
  kl_of_selected(batch: Prepared, advantages, _ratio, { beta, share }: { beta: number; share: number }) {
    const log = logRatio(batch, "old_log_probs");
    const chosen = batch.has("selected") ? batch.get("selected") : topCovariance(batch, advantages, share);
    const factor = chosen.map((is, i) => (is > 0 && batch.mask[i]! > 0 ? beta : 0));
    return {
      penalty: log.map((value, i) => Math.abs(value) * factor[i]!),
      dLogProb: log.map((value, i) => Math.sign(value) * factor[i]!),
      beforeWeight: true,
    };
  },

  /**
   * β · k3; on responses of positive advantage scaled down by the difficulty d of their prompt (View-R1).
   *
   * The factor is 1 − e^{−e(1 − d)}, and 1 where every response of the prompt is right or every one is wrong.
   */
  kl_of_positives(batch: Prepared, advantages, _ratio, { beta, reference }: { beta: number; reference: string }) {
    const { value, slope } = klTerms(logRatio(batch, reference), "k3", null);
    const difficulty = batch.spread("difficulty");
    const factor = advantages.map((advantage, i) => {
      const d = difficulty[i]!;
      return beta * (advantage > 0 && d > 0 && d < 1 ? 1 - Math.exp(-Math.E * (1 - d)) : 1);
    });
    return {
      penalty: value.map((each, i) => each * factor[i]!),
      dLogProb: slope.map((each, i) => each * factor[i]!),
    };
  },

  /** β/2 · max(KL(π_old ‖ π_θ) − limit, 0)², over the tokens of the batch (DisCO). */
  kl_hinge(batch: Prepared, _advantages, _ratio, { beta, limit }: { beta: number; limit: number }) {
    const { mask } = batch;
    const log = logRatio(batch, "old_log_probs").map((value, i) => value * mask[i]!);
    const tokens = Math.max(sum(mask), 1);
    const divergence = sum(log.map((value, i) => (cappedExp(value) - value - 1) * mask[i]!)) / tokens;
    const excess = Math.max(divergence - limit, 0);
    // The same on every token, so that its mean over tokens is the penalty whether or not all of them are valid.
    const penalty = perToken(batch).fill(((beta / 2) * excess * excess * tokens) / Math.max(sum(batch.valid), 1));
    return { penalty, dLogProb: log.map((value) => beta * excess * (cappedExp(value) - 1)), tokenMean: true };
  },

  /** −β · KL from the policy that does not see the image: rewards using it (PAPO). The second pass is detached. */
  bonus_for_seeing(batch: Prepared, _advantages, _ratio, { beta }: { beta: number }) {
    const { value, slope } = klTerms(logRatio(batch, "augmented_log_probs"), "k3", null);
    return { penalty: scaled(value, -beta), dLogProb: scaled(slope, -beta) };
  },

  /**
   * −coefficient · entropy: over the whole vocabulary, so no share of it belongs to the sampled token.
   *
   * With a `quantile` below 1, of the share of tokens with the highest entropy alone.
   */
  entropy_bonus(
    batch: Prepared,
    _advantages,
    _ratio,
    { coefficient, token_mean, quantile }: { coefficient: number; token_mean: boolean; quantile: number },
  ) {
    return {
      penalty: scaled(batch.get("entropies"), -coefficient),
      attributable: false,
      tokenMean: token_mean,
      among: quantile < 1 ? mostEntropic(batch, quantile) : null,
    };
  },
} satisfies Table<[batch: Prepared, advantages: Float64Array, ratio: Ratio], Constraint>;
