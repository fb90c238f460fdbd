/**
 * Baseline: what a reward is compared with. The advantage of a whole response.
 *
 * A response without a finite reward has advantage 0 and is left out of every mean and deviation. A group whose rewards
 * are all equal has advantage exactly 0 under a centred baseline: rounding is never divided by a small deviation.
 * `singleton` says what a group of one compares with: `self`, its own reward, so that it teaches nothing, or `zero`, as
 * verl does.
 */
import { rowSums, spread, type Prepared } from "../prepared";
import { clip, differ, order, sum } from "../numbers";
import { CREDIT, discounted } from "./credit";
import { allEqual, centred, finite, groupCount, groupRange, groupSum } from "./groups";
import type { Advantages, Rewards, Table } from "./types";

interface Singleton {
  readonly singleton: string;
}

/** Of whole responses, from B values. */
export function ofResponses(batch: Prepared, values: Float64Array): Advantages {
  return { values: spread(values, batch.T), perToken: false };
}

const OF_RESPONSES = {
  /** The advantages the trainer computed. */
  recorded(batch: Prepared) {
    return { values: batch.spread("advantages"), perToken: batch.isPerToken("advantages") };
  },

  /** The reward itself. */
  none(batch: Prepared, rewards) {
    return ofResponses(batch, finite(batch, rewards.response));
  },

  /** 1 for every response: imitation. */
  unit(batch: Prepared) {
    return ofResponses(batch, new Float64Array(batch.B).fill(1));
  },

  /** Mean reward of the group. */
  group_mean(batch: Prepared, rewards, { singleton }: Singleton) {
    return ofResponses(batch, centred(batch, rewards.response, singleton));
  },

  /**
   * Mean reward of the group's responses the policy sampled itself; others are compared with it too.
   *
   * A group without any of its own has advantage 0.
   */
  on_policy_group_mean(batch: Prepared, rewards, { singleton }: Singleton) {
    const values = finite(batch, rewards.response);
    const source = batch.get("source");
    const own = batch.scored.map((is, b) => (is && source[b] === 0 ? 1 : 0));
    const count = groupSum(batch, own);
    const total = groupSum(batch, values.map((value, b) => value * own[b]!));
    const { highest, lowest } = groupRange(batch, values, own);
    return ofResponses(
      batch,
      values.map((value, b) => {
        if (!batch.scored[b] || count[b] === 0) return 0;
        if (singleton === "zero" && count[b] === 1) return value;
        // Rounding must not tell equal rewards apart.
        return value - clip(total[b]! / count[b]!, lowest[b]!, highest[b]!);
      }),
    );
  },

  /** Mean reward of the group plus a constant (AsymRE). */
  shifted_group_mean(batch: Prepared, rewards, { shift }: { shift: number }) {
    const shifted = centred(batch, rewards.response, "self").map((value) => value - shift);
    return ofResponses(batch, finite(batch, shifted));
  },

  /** Mean reward of the batch. */
  batch_mean(batch: Prepared, rewards) {
    const { scored } = batch;
    const values = finite(batch, rewards.response);
    if (!differ(values.filter((_, b) => scored[b]))) return ofResponses(batch, new Float64Array(batch.B));
    const mean = sum(values) / Math.max(sum(scored), 1);
    return ofResponses(batch, finite(batch, values.map((value) => value - mean)));
  },

  /** Mean reward of the group's other responses. */
  leave_one_out(batch: Prepared, rewards, { singleton }: Singleton) {
    const count = groupCount(batch);
    const difference = centred(batch, rewards.response, singleton);
    return ofResponses(
      batch,
      difference.map((value, b) => (count[b]! > 1 ? (value * count[b]!) / (count[b]! - 1) : value)),
    );
  },

  /** Mean reward of the group, longer responses counting for more (OPO). */
  length_weighted_mean(batch: Prepared, rewards, { singleton }: Singleton) {
    const values = finite(batch, rewards.response);
    const length = rowSums(batch.mask, batch.T).map((value, b) => value * batch.scored[b]!);
    const weighted = groupSum(batch, values.map((value, b) => value * length[b]!));
    const total = groupSum(batch, length);
    const equal = allEqual(batch, values);
    const count = groupCount(batch);
    const difference = values.map((value, b) => {
      if (singleton === "zero" && count[b] === 1) return value;
      return equal[b] ? 0 : value - weighted[b]! / Math.max(total[b]!, 1e-300);
    });
    return ofResponses(batch, finite(batch, difference));
  },

  /** Reward of the greedy answer (ReMax); of token rewards, what is still to come counts. */
  greedy(batch: Prepared, rewards) {
    const { T, scored, mask } = batch;
    const greedy = batch.get("greedy_reward");
    if (rewards.token === null) {
      return ofResponses(batch, rewards.response.map((value, b) => (scored[b] ? value - greedy[b]! : 0)));
    }
    const toCome = discounted(rewards.token, mask, T, 1);
    return {
      values: toCome.map((value, i) => {
        const b = Math.floor(i / T);
        return scored[b] ? value - greedy[b]! : 0;
      }),
      perToken: true,
    };
  },

  /** A baseline that comes with the batch: a tracker, a search, a value of the prompt. */
  given(batch: Prepared, rewards) {
    const { T, scored } = batch;
    const values = batch.spread("baselines").map((baseline, i) => {
      const b = Math.floor(i / T);
      return scored[b] ? rewards.response[b]! - baseline : 0;
    });
    return { values, perToken: batch.isPerToken("baselines") };
  },

  /** Mean reward over every response ever sampled for the prompt (Reinforce-Ada). */
  pool_mean(batch: Prepared, rewards) {
    const mean = batch.get("pool_mean");
    return ofResponses(batch, finite(batch, rewards.response.map((value, b) => value - mean[b]!)));
  },

  /** Only the best response of a group has an advantage: its lead over the second best (pass@k). */
  second_best(batch: Prepared, rewards) {
    const advantages = new Float64Array(batch.B);
    for (const rows of batch.members) {
      const scored = rows.filter((b) => batch.scored[b]);
      if (scored.length < 2) continue;
      const [first, second] = order(scored.map((b) => -rewards.response[b]!));
      const best = scored[first!]!;
      advantages[best] = rewards.response[best]! - rewards.response[scored[second!]!]!;
    }
    return ofResponses(batch, advantages);
  },
} satisfies Table<[batch: Prepared, rewards: Rewards], Advantages>;

export const BASELINE: Table<[batch: Prepared, rewards: Rewards], Advantages> = { ...OF_RESPONSES, ...CREDIT };
