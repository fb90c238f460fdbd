/** Mask: further tokens whose policy term does not count, and whether they leave the denominator too. */
import { rowSums, spread, type Prepared } from "../prepared";
import { clip, order, quantile as quantileOf } from "../numbers";
import { logRatio } from "./ratio";
import { conflicts } from "./conflict";
import { perToken, type Mask, type Ratio, type Table } from "./types";

interface Denominator {
  readonly denominator: boolean;
}

/** 1 on the share `quantile` of the tokens with the highest entropy. */
export function mostEntropic(batch: Prepared, quantile: number): Float64Array {
  const counted = batch.valid.map((value) => (value > 0 ? 1 : 0));
  const entropies = batch.get("entropies");
  const among = entropies.filter((_, i) => counted[i]! > 0);
  if (among.length === 0 || !(quantile < 1)) return counted;
  const from = quantileOf(among, 1 - quantile);
  return counted.map((is, i) => (entropies[i]! >= from ? is : 0));
}

export const MASK = {
  /** The trainer's own further factors. */
  recorded_mask(batch: Prepared, _advantages, _ratio, { denominator }: Denominator) {
    return { keep: batch.get("policy_mask"), denominator };
  },

  /** Everything but a recorded selection (Clip-Cov). */
  not_selected(batch: Prepared, _advantages, _ratio, { denominator }: Denominator) {
    return { keep: batch.get("selected").map((is) => (is > 0 ? 0 : 1)), denominator };
  },

  /** Responses cut off at the length limit do not count. */
  truncated_responses(batch: Prepared, _advantages, _ratio, { denominator }: Denominator) {
    return { keep: spread(batch.get("truncated").map((is) => (is > 0 ? 0 : 1)), batch.T), denominator };
  },

  /** Only the share `quantile` of the batch's tokens with the highest entropy counts. */
  high_entropy(batch: Prepared, _advantages, _ratio, { quantile, denominator }: { quantile: number } & Denominator) {
    return { keep: mostEntropic(batch, quantile), denominator };
  },

  /** Only tokens the sampling policy gave less than a probability. */
  unlikely_tokens(
    batch: Prepared,
    _advantages,
    _ratio,
    { probability, denominator }: { probability: number } & Denominator,
  ) {
    return { keep: batch.get("old_log_probs").map((log) => (Math.exp(log) < probability ? 1 : 0)), denominator };
  },

  /** Drops a response of negative advantage the policy has moved too far away from (OPSM). */
  off_policy_sequences(
    batch: Prepared,
    advantages,
    _ratio,
    { threshold, reference, denominator }: { threshold: number; reference: string } & Denominator,
  ) {
    const drift = spread(batch.meanOverTokens(logRatio(batch, "log_probs", reference)), batch.T);
    return { keep: advantages.map((advantage, i) => (advantage < 0 && drift[i]! > threshold ? 0 : 1)), denominator };
  },

  /** Only tokens, or whole responses, whose estimated divergence from another policy is inside limits. */
  divergence_limit(
    batch: Prepared,
    _advantages,
    _ratio,
    values: {
      level: string;
      estimator: string;
      limit_low: number | null;
      limit_high: number;
      reference: string;
    } & Denominator,
  ) {
    const { level, estimator, limit_low, limit_high, denominator } = values;
    const { T, mask, valid } = batch;
    let value: Float64Array = logRatio(batch, values.reference).map((difference) => {
      const log = clip(difference, -20, 20);
      if (estimator === "k1") return -log;
      return estimator === "k2" ? 0.5 * log * log : Math.exp(log) - 1 - log;
    });
    if (level === "sequence_sum") {
      value = spread(rowSums(value.map((each, i) => each * mask[i]!), T), T);
    } else if (level === "sequence_mean") {
      value = spread(batch.meanOverTokens(value), T);
    } else if (level === "sequence_max") {
      const highest = new Float64Array(batch.B).fill(-Infinity);
      value.forEach((each, i) => {
        const b = Math.floor(i / T);
        if (valid[i]! > 0) highest[b] = Math.max(highest[b]!, each);
      });
      value = spread(highest, T);
    }
    const keep = value.map((each) => (each <= limit_high && (limit_low === null || each >= limit_low) ? 1 : 0));
    return { keep, denominator };
  },

  /** Only tokens whose entropy changed by little since sampling (ERC). */
  entropy_ratio(
    batch: Prepared,
    _advantages,
    _ratio,
    { change_low, change_high, denominator }: { change_low: number; change_high: number } & Denominator,
  ) {
    const old = batch.get("old_entropies");
    const keep = batch.get("entropies").map((entropy, i) => {
      const change = entropy / Math.max(old[i]!, 1e-8);
      return change >= 1 - change_low && change <= 1 + change_high ? 1 : 0;
    });
    return { keep, denominator };
  },

  /** Only the first share of a response's tokens. */
  prefix(batch: Prepared, _advantages, _ratio, { share, denominator }: { share: number } & Denominator) {
    const { B, T, mask } = batch;
    const total = rowSums(mask, T);
    const keep = perToken(batch);
    for (let b = 0; b < B; b++) {
      let place = 0;
      for (let i = b * T; i < (b + 1) * T; i++) {
        place += mask[i]!;
        keep[i] = place <= Math.ceil(share * total[b]!) ? 1 : 0;
      }
    }
    return { keep, denominator };
  },

  /** Only the share of each response's tokens with the largest |A| · entropy (D3S). */
  advantage_entropy(batch: Prepared, advantages, _ratio, { share, denominator }: { share: number } & Denominator) {
    const { B, T, mask } = batch;
    const entropies = batch.get("entropies");
    const keep = perToken(batch);
    const total = rowSums(mask, T);
    const score = mask.map((is, i) => (is > 0 ? -(Math.abs(advantages[i]!) * entropies[i]!) : Infinity));
    for (let b = 0; b < B; b++) {
      const kept = Math.ceil(share * total[b]!);
      order(score.subarray(b * T, (b + 1) * T)).forEach((t, rank) => (keep[b * T + t] = rank < kept ? 1 : 0));
    }
    return { keep, denominator };
  },

  /** Tokens a response shares, place by place, with one of opposite advantage: ×2 if A > 0, ×0 if A < 0 (GTPO). */
  conflict_tokens(batch: Prepared, advantages, _ratio, { denominator }: Denominator) {
    return { keep: conflicts(batch, advantages), denominator };
  },
} satisfies Table<[batch: Prepared, advantages: Float64Array, ratio: Ratio], Mask>;
