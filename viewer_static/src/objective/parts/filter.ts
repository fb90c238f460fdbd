/**
 * Filter: which responses take part at all, and how often (B).
 *
 * What a filter gives is a multiplicity: the loss is that of a batch in which a response stands so many times, in the
 * numerators and in every denominator; one of 0 is not there at all. Advantages are those of the batch as it was
 * sampled; only of a group that is dropped as a whole nothing is left in any statistic.
 */
import type { Prepared } from "../prepared";
import { largest, order, sum, variance } from "../numbers";
import { finite, groupCount, groupRange, groupSum } from "./groups";
import type { Table } from "./types";

export const FILTER = {
  /** Drops groups whose rewards are all equal (DAPO's dynamic sampling, on what was sampled). */
  groups_with_signal(batch: Prepared) {
    const { highest, lowest } = groupRange(batch, batch.get("reward"), batch.scored);
    return highest.map((high, b) => (high > lowest[b]! ? 1 : 0));
  },

  /** A response counts in proportion to |reward|^power: the expectation of PF-PPO's resampling. */
  reward_power(batch: Prepared, { power }: { power: number }) {
    const { scored, B } = batch;
    const size = finite(batch, batch.get("reward")).map(Math.abs);
    let weight = size.map((value, b) => (scored[b] ? value ** power : 0));
    if (!Number.isFinite(sum(weight))) {
      // Only their proportions matter.
      const most = largest(size);
      weight = size.map((value, b) => (scored[b] ? (value / most) ** power : 0));
    }
    weight = weight.map((value) => value + 1e-8);
    const total = sum(weight);
    return weight.map((value) => (value / total) * B);
  },

  /** Keeps responses that did better than expected (A-LoL). */
  positive_advantages(batch: Prepared) {
    const { T, mask } = batch;
    const baselines = batch.spread("baselines");
    return batch.get("reward").map((reward, b) => {
      // Of baselines per token, the one at the first token is that of the response.
      const first = Math.max(mask.subarray(b * T, (b + 1) * T).findIndex((is) => is > 0), 0);
      return (Number.isNaN(reward) ? 0 : reward) > baselines[b * T + first]! ? 1 : 0;
    });
  },

  /** Keeps the share of responses whose rewards, over the batch, vary most: the extremes (D3S). */
  most_varied(batch: Prepared, { share }: { share: number }) {
    const { B, scored } = batch;
    const keep = Math.max(1, Math.ceil(share * B));
    const count = groupCount(batch);
    const total = groupSum(batch, finite(batch, batch.get("reward")));
    const centred = batch
      .get("reward")
      .map((reward, b) => (scored[b] ? reward - total[b]! / Math.max(count[b]!, 1) : 0));
    const ordered = [...order(centred)];
    let best = ordered.slice(0, keep);
    let bestVariance = -1;
    for (let low = 0; low <= keep; low++) {
      const chosen = [...ordered.slice(0, low), ...ordered.slice(B - (keep - low))];
      const spread = variance(chosen.map((b) => centred[b]!), 0);
      if (spread > bestVariance + 1e-12) [best, bestVariance] = [chosen, spread];
    }
    const kept = new Float64Array(B);
    for (const b of best) kept[b] = 1;
    return kept;
  },
} satisfies Table<[batch: Prepared], Float64Array>;
