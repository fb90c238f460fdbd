/**
 * Gates that tell a prompt's good responses from its bad ones by a score of whole responses. All are B.
 *
 * Both are spread over the group's responses so that a mean over responses is the mean over prompts of equal size; a
 * prompt without both kinds teaches nothing.
 */
import { maskedSums, type Prepared } from "../prepared";
import { cappedExp, largest, sum } from "../numbers";
import { AlgorithmError } from "../types";
import type { Ratio } from "./types";

interface Contrast {
  readonly objective: Float64Array;
  /** Derivative by the log ratio. */
  readonly slope: Float64Array;
}

/** The ratio of whole responses. Throws AlgorithmError where each token has one of its own. */
function scoreOf(ratio: Ratio): Float64Array {
  if (ratio.response === null) {
    throw new AlgorithmError(
      "gate: a ratio of whole responses is needed (sequence_mean, mean_log_prob), not of tokens",
    );
  }
  return ratio.response;
}

/** Calls `each` for every group with good and with bad responses; one without a reward or a token is neither. */
function eachGroup(
  batch: Prepared,
  isGood: (b: number) => boolean,
  each: (size: number, good: number[], bad: number[]) => void,
): void {
  const { mask, scored, T } = batch;
  const usable = scored.map((is, b) => (is && mask.subarray(b * T, (b + 1) * T).some((value) => value !== 0) ? 1 : 0));
  for (const rows of batch.members) {
    const good = rows.filter((b) => usable[b] && isGood(b));
    const bad = rows.filter((b) => usable[b] && !isGood(b));
    if (good.length > 0 && bad.length > 0) each(rows.length, good, bad);
  }
}

/** −log(1 + Σ e^{−s/τ}) over the good, −log(1 + Σ e^{s/τ}) over the bad; s the log ratio, good an advantage above 0. */
export function logistic(batch: Prepared, advantages: Float64Array, ratio: Ratio, tau: number): Contrast {
  const score = scoreOf(ratio);
  const objective = new Float64Array(batch.B);
  const slope = new Float64Array(batch.B);
  const total = maskedSums(advantages, batch.mask, batch.T);
  eachGroup(
    batch,
    (b) => total[b]! > 0,
    (size, good, bad) => {
      for (const [kind, sign] of [[good, -1], [bad, 1]] as const) {
        const scaled = kind.map((b) => (sign * score[b]!) / tau);
        const highest = Math.max(largest(scaled), 0);
        const powers = scaled.map((value) => Math.exp(value - highest));
        const sums = Math.exp(-highest) + sum(powers);
        kind.forEach((b, k) => {
          objective[b] = (-size / kind.length) * (highest + Math.log(sums));
          slope[b] = (((-sign * size) / tau) * powers[k]!) / sums;
        });
      }
    },
  );
  return { objective, slope };
}

/** The good's mean score − τ log-mean-exp(s/τ) of the bad; good is a reward above 0, the score `log` or `ratio`. */
export function discriminated(batch: Prepared, ratio: Ratio, tau: number, by: string): Contrast {
  const score = by === "log" ? scoreOf(ratio) : scoreOf(ratio).map(cappedExp);
  const objective = new Float64Array(batch.B);
  const slope = new Float64Array(batch.B);
  const reward = batch.get("reward");
  eachGroup(
    batch,
    (b) => reward[b]! > 0,
    (size, good, bad) => {
      for (const b of good) {
        slope[b] = size / good.length;
        objective[b] = slope[b]! * score[b]!;
      }
      const highest = largest(bad.map((b) => score[b]!));
      const powers = bad.map((b) => Math.exp((score[b]! - highest) / tau));
      const sums = sum(powers);
      bad.forEach((b, k) => {
        slope[b] = (-size * powers[k]!) / sums;
        objective[b] = (-size / bad.length) * (highest + tau * Math.log(sums / bad.length));
      });
    },
  );
  return { objective, slope: by === "log" ? slope : slope.map((value, b) => value * score[b]!) };
}
