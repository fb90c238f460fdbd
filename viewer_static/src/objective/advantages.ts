/** The parts of an algorithm that look at rewards: how often responses take part, and their advantages. */
import { functionOf } from "./call";
import { describePart } from "./registry";
import type { Prepared } from "./prepared";
import { times, watched } from "./numbers";
import { FUNCTIONS } from "./parts";
import type { Advantages, Rewards } from "./parts/types";
import type { Parts } from "./types";

/** The sum of squares of larger numbers may be infinite. */
const SQUARED = 1e150;

/** B: how often a response takes part. */
export function multiplicities(parts: Parts, batch: Prepared): Float64Array {
  let often = batch.before;
  for (const use of parts.filter) {
    often = times(often, functionOf("filter", FUNCTIONS.filter, use)(batch));
  }
  return often;
}

/** A group that is dropped as a whole takes no part in any statistic, as if it had never been sampled. */
export function withoutDroppedGroups(batch: Prepared, often: Float64Array): Prepared {
  if (!batch.has("group") || !batch.has("reward") || often.every((value) => value !== 0)) return batch;
  const kept = new Uint8Array(batch.B);
  for (const rows of batch.members) if (rows.some((b) => often[b]! > 0)) for (const b of rows) kept[b] = 1;
  return batch.countingRows(kept).scoring(kept);
}

/** Advantages, 0 where there is none, and what is to be told of them. */
export function judged(parts: Parts, batch: Prepared): Advantages & { readonly notes: readonly string[] } {
  const { result, overflowed } = watched(() => computed(parts, batch));
  const { T, mask, scored } = batch;
  const isRewarded = describePart("baseline", parts.baseline.part)?.needs?.includes("reward") === true;
  let lost = false;
  const values = new Float64Array(result.values.length);
  for (let b = 0, i = 0; b < batch.B; b++) {
    const isScored = scored[b] === 1;
    for (const end = i + T; i < end; i++) {
      const value = result.values[i]!;
      const isFinite = value - value === 0;
      if (!isFinite && mask[i]! > 0 && isScored) lost = true;
      // Whatever a later part made of it: what has no reward is not judged.
      if (isFinite && (isScored || !isRewarded)) values[i] = value;
    }
  }
  const notes = overflowed || lost ? [`an advantage overflowed or is undefined, and counts as 0: ${why(batch)}`] : [];
  return { values, perToken: result.perToken, notes };
}

function computed(parts: Parts, batch: Prepared): Advantages {
  let rewards: Rewards = {
    response: batch.has("reward") ? batch.get("reward") : new Float64Array(batch.B),
    token: batch.has("rewards") ? batch.get("rewards") : null,
  };
  for (const use of parts.reward) rewards = functionOf("reward", FUNCTIONS.reward, use)(batch, rewards);
  let advantages = functionOf("baseline", FUNCTIONS.baseline, parts.baseline)(batch, rewards);
  for (const use of parts.scale) advantages = functionOf("scale", FUNCTIONS.scale, use)(batch, rewards, advantages);
  for (const use of parts.modulation) {
    advantages = functionOf("modulation", FUNCTIONS.modulation, use)(batch, advantages);
  }
  return advantages;
}

function why(batch: Prepared): string {
  let size = 0;
  for (const name of ["reward", "rewards", "reward_components"]) {
    if (!batch.has(name)) continue;
    for (const value of batch.get(name)) if (Number.isFinite(value)) size = Math.max(size, Math.abs(value));
  }
  if (!(size > SQUARED)) return "see its inputs";
  return `rewards of this size (up to ${size.toExponential(0)}) cannot be squared`;
}
