/** Modulation: how the advantage changes from token to token, or from response to response. */
import { rowSums, type Prepared } from "../prepared";
import { cappedExp, clip, mean, sum, variance } from "../numbers";
import { entropyAdaptive, entropyLevel } from "./bounds";
import { finite, groupSum } from "./groups";
import { logRatio } from "./ratio";
import type { Advantages, Table } from "./types";

export const MODULATION = {
  /** Times a weight of each token that comes with the batch (TW-GRPO, THR). */
  given_weights(batch: Prepared, { values }) {
    const weights = batch.get("token_weights");
    return { values: values.map((advantage, i) => advantage * weights[i]!), perToken: true };
  },

  /** + α|A| on planning tokens (HICRA). */
  planning_bonus(batch: Prepared, { values }, { alpha }: { alpha: number }) {
    const planning = batch.get("planning");
    return {
      values: values.map((advantage, i) => advantage + alpha * Math.abs(advantage) * planning[i]!),
      perToken: true,
    };
  },

  /** − γ · the response's mean entropy; a response above the limit does not count (GTPO). */
  entropy_penalty(batch: Prepared, advantages, { gamma, limit }: { gamma: number; limit: number }) {
    const entropy = batch.meanOverTokens(batch.get("entropies"));
    return ofRows(batch, advantages, (advantage, b) => (entropy[b]! > limit ? 0 : advantage - gamma * entropy[b]!));
  },

  /** + weight · a token's share of the entropy at its position over the group's successful responses (GTPO-S). */
  entropy_share(batch: Prepared, { values }, { weight }: { weight: number }) {
    const { T, mask, groups, members } = batch;
    const entropies = batch.get("entropies").map((entropy, i) => entropy * (values[i]! > 0 ? 1 : 0));
    const total = new Float64Array(members.length * T);
    const count = new Float64Array(members.length * T);
    const placeOf = (i: number) => groups[Math.floor(i / T)]! * T + (i % T);
    for (let i = 0; i < values.length; i++) {
      total[placeOf(i)]! += entropies[i]!;
      count[placeOf(i)]! += (values[i]! > 0 ? 1 : 0) * mask[i]!;
    }
    return {
      values: values.map((advantage, i) => {
        if (!(advantage > 0)) return advantage;
        const place = placeOf(i);
        const share = total[place]! > 0 ? (entropies[i]! / total[place]!) * count[place]! : 0 * count[place]!;
        return advantage + weight * share;
      }),
      perToken: true,
    };
  },

  /**
   * A wrong response longer than its group's right ones is pushed harder: × (2 − base^(mean − length)) (View-R1).
   *
   * Right is a reward of 1 or more, wrong one below 1; a group without a right response is left as it is.
   */
  negatives_by_length(batch: Prepared, advantages, { base }: { base: number }) {
    const length = rowSums(batch.mask, batch.T);
    const right = finite(batch, batch.get("reward")).map(Math.trunc);
    const count = groupSum(batch, right);
    const total = groupSum(batch, length.map((value, b) => value * right[b]!));
    return ofRows(batch, advantages, (advantage, b) => {
      const excess = length[b]! - total[b]! / (count[b]! > 0 ? count[b]! : 1);
      return right[b] === 0 && excess > 0 && count[b]! > 0 ? advantage * (2 - base ** -excess) : advantage;
    });
  },

  /** The smaller of two mixtures of this step's advantage with that against all rewards so far (DCPO's SAS). */
  nearest_history(batch: Prepared, advantages) {
    const visits = batch.get("visits");
    const historic = batch.get("historic_advantages");
    return ofRows(batch, advantages, (advantage, b) => {
      const n = visits[b]!;
      const now = ((n - 1) / n) * advantage + historic[b]! / n;
      const old = ((n - 1) / n) * historic[b]! + advantage / n;
      return Math.abs(now) < Math.abs(old) ? now : old;
    });
  },

  /** w · local + (1 − w) · advantage over the whole batch, w = σ(γ(H − ρ)), H the entropy of the answers (COPO). */
  consistency_blend(batch: Prepared, advantages, { gamma, rho }: { gamma: number; rho: number }) {
    const answers = batch.get("answers");
    const reward = finite(batch, batch.get("reward"));
    const entropy = new Float64Array(batch.B);
    const rates = batch.members.map((rows) => mean(rows.map((b) => reward[b]!)));
    for (const rows of batch.members) {
      const size = new Map<number, number>();
      for (const b of rows) size.set(answers[b]!, (size.get(answers[b]!) ?? 0) + 1);
      const own = -sum([...size.values()].map((n) => (n / rows.length) * Math.log(n / rows.length)));
      for (const b of rows) entropy[b] = own;
    }
    const deviation = Math.sqrt(variance(rates, 0));
    const centre = mean(rates);
    return ofRows(batch, advantages, (advantage, b) => {
      const overall = deviation > 0 ? (rates[batch.groups[b]!]! - centre) / deviation : 0;
      const weight = 0.5 * (1 + Math.tanh(0.5 * gamma * (entropy[b]! - rho)));
      return weight * advantage + (1 - weight) * overall;
    });
  },

  /** Larger for correct responses the policy found unlikely (XRPO; form of the factor not verified). */
  sharpened_by_novelty(batch: Prepared, advantages, { strength }: { strength: number }) {
    const log = batch.meanOverTokens(batch.get("old_log_probs"));
    return ofRows(batch, advantages, (advantage, b) =>
      advantage > 0 ? advantage * (1 + strength * clip(-log[b]!, 0, 1)) : advantage,
    );
  },

  /**
   * × (1 + βh) outside a neutral zone of the ratio where h > 0, inside it where h ≤ 0 (HAPO).
   *
   * h is the entropy's level; the neutral zone reaches half way from 1 to the bounds `entropy_adaptive` gives with the
   * same hyper-parameters.
   */
  by_entropy_and_ratio(
    batch: Prepared,
    { values },
    given: {
      strength: number;
      epsilon_low: number;
      epsilon_high: number;
      stretch: number;
      quantile: number;
      low_side: string;
    },
  ) {
    const level = entropyLevel(batch, given.quantile, given.low_side);
    const { low, high } = entropyAdaptive(batch, given);
    const log = logRatio(batch, "old_log_probs");
    return {
      values: values.map((advantage, i) => {
        const ratio = cappedExp(log[i]!);
        const isNeutral = ratio > (1 + low[i]!) / 2 && ratio < (1 + high[i]!) / 2;
        const changes = level[i]! > 0 ? !isNeutral : isNeutral;
        return changes ? advantage * (1 + given.strength * level[i]!) : advantage;
      }),
      perToken: true,
    };
  },
} satisfies Table<[batch: Prepared, advantages: Advantages], Advantages>;

/** Each advantage changed by something of its response. */
function ofRows(batch: Prepared, advantages: Advantages, change: (advantage: number, b: number) => number): Advantages {
  const { T } = batch;
  return { ...advantages, values: advantages.values.map((advantage, i) => change(advantage, Math.floor(i / T))) };
}
