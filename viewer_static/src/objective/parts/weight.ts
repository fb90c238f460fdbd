/** Weight: detached factors on the policy term. No gradient flows through them. */
import { maskedSums, spread, type Prepared } from "../prepared";
import { cappedExp, clip, times } from "../numbers";
import { logRatio } from "./ratio";
import { perToken, type Table } from "./types";

/** π_old/π_sampler of a token, or of a response as product or geometric mean. */
function samplerRatio(batch: Prepared, level: string): Float64Array {
  const log = logRatio(batch, "rollout_log_probs", "old_log_probs");
  if (level === "token") return times(log, batch.mask).map(cappedExp);
  const sums = maskedSums(log, batch.mask, batch.T);
  const of = level === "sequence_product" ? sums : sums.map((value, b) => value / batch.lengths[b]!);
  return spread(of.map(cappedExp), batch.T);
}

export const WEIGHT = {
  /** The trainer's own sampler correction; at the level of responses, the geometric mean over their tokens. */
  recorded_weight(batch: Prepared, { level }: { level: string }) {
    const weights = batch.spread("is_weights");
    if (level === "token" || batch.T === 1 || !batch.isPerToken("is_weights")) return weights;
    const log = weights.map((value, i) => Math.log(Math.max(value, 1e-10)) * batch.valid[i]!);
    return spread(batch.meanOverTokens(log).map(cappedExp), batch.T);
  },

  /** π_old/π_sampler, no larger than C and no smaller than a floor. */
  truncated(batch: Prepared, { level, cap, floor }: { level: string; cap: number; floor: number }) {
    return samplerRatio(batch, level).map((ratio) => clip(ratio, floor, cap));
  },

  /** π_old/π_sampler inside a band, 0 outside; the token stays in the denominator. */
  banded(batch: Prepared, values: { level: string; band_low: number; band_high: number }) {
    const { level, band_low, band_high } = values;
    return samplerRatio(batch, level).map((ratio) => (ratio >= band_low && ratio <= band_high ? ratio : 0));
  },

  /** p(1 − p): largest where the policy is undecided. */
  indecision(batch: Prepared) {
    return batch.get("log_probs").map((log) => cappedExp(log) * (1 - cappedExp(log)));
  },

  /** (1 − p)^power: larger where the policy finds the token unlikely. */
  exploration(batch: Prepared, { power }: { power: number }) {
    return batch.get("log_probs").map((log) => Math.max(1 - cappedExp(log), 0) ** power);
  },

  /** The same factor everywhere. */
  constant_weight(batch: Prepared, { factor }: { factor: number }) {
    return perToken(batch).fill(factor);
  },
} satisfies Table<[batch: Prepared], Float64Array>;
