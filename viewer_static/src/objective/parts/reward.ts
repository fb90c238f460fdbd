/** Reward: what is made of the rewards before they are compared. */
import { maskedSums, rowSums, type Prepared } from "../prepared";
import { clip } from "../numbers";
import { klTerms } from "./constraint";
import { rewardsPerToken } from "./credit";
import { centred, groupStdOf } from "./groups";
import { logRatio } from "./ratio";
import type { Rewards, Table } from "./types";

export const REWARD = {
  /**
   * Each component normalised inside its group, then summed with weights (GDPO).
   *
   * A response a reward function gave nothing for is left out of that function's statistics.
   */
  normalised_components(batch: Prepared, _rewards, { eps, singleton }: { eps: number; singleton: string }) {
    const components = batch.get("reward_components");
    const K = components.length / batch.B;
    const weights = batch.has("reward_weights") ? batch.get("reward_weights") : new Float64Array(K).fill(1);
    const response = new Float64Array(batch.B);
    for (let k = 0; k < K; k++) {
      const column = Float64Array.from(response, (_, b) => components[b * K + k]!);
      const answered = batch.scoring(Uint8Array.from(column, (value) => (Number.isFinite(value) ? 1 : 0)));
      const difference = centred(answered, column, singleton);
      const deviation = groupStdOf(answered, column, 1, singleton);
      for (let b = 0; b < response.length; b++) response[b]! += (difference[b]! / (deviation[b]! + eps)) * weights[k]!;
    }
    return { response, token: null };
  },

  /** −β · KL estimate of old against reference policy at every token; the reward stands at the last one. */
  token_kl_penalty(batch: Prepared, rewards, { beta, estimator }: { beta: number; estimator: string }) {
    const log = logRatio(batch, "ref_log_probs", "old_log_probs");
    const { value } = klTerms(log, estimator, estimator === "k3" ? 10 : null);
    const penalty = value.map((each, i) => beta * each * batch.mask[i]!);
    const total = rowSums(penalty, batch.T);
    const token = rewardsPerToken(batch, rewards);
    return {
      // Not the sum of what is left: a response without a token that counts keeps its reward.
      response: rewards.response.map((reward, b) => reward - total[b]!),
      token: token.map((reward, i) => reward - penalty[i]!),
    };
  },

  /** −β · Σ (log π_old − log π_ref) over the response. */
  sequence_kl_penalty(batch: Prepared, rewards, { beta }: { beta: number }) {
    const kl = maskedSums(logRatio(batch, "ref_log_probs", "old_log_probs"), batch.mask, batch.T);
    return { response: rewards.response.map((reward, b) => reward - beta * kl[b]!), token: null };
  },

  /** Falls linearly from 0 to −1 over the last `cache` tokens before `max_length` (DAPO, eq. 13). */
  overlong_penalty(
    batch: Prepared,
    rewards,
    { max_length, cache, floor }: { max_length: number; cache: number; floor: number | null },
  ) {
    const length = rowSums(batch.mask, batch.T);
    const response = rewards.response.map((reward, b) => {
      const penalty = Math.min(-(length[b]! - (max_length - cache)) / cache, 0);
      return reward + (floor === null ? penalty : Math.max(penalty, floor));
    });
    return { response, token: null };
  },

  /** Rewards outside a range are moved to its edge. */
  clipped_reward(_batch: Prepared, rewards, { low, high }: { low: number; high: number }) {
    return { response: rewards.response.map((reward) => clip(reward, low, high)), token: null };
  },

  /** A response cut off at the length limit gets this reward (DLER: 0). */
  truncation_penalty(batch: Prepared, rewards, { value }: { value: number }) {
    const truncated = batch.get("truncated");
    return { response: rewards.response.map((reward, b) => (truncated[b]! > 0 ? value : reward)), token: null };
  },

  /** β₁ log(π_dpo/π_ref) − β₂ log(π_old/π_ref) at every token, and the reward at the last one (RTO). */
  implicit_token_reward(
    batch: Prepared,
    rewards,
    { beta_dense, beta_kl, limit }: { beta_dense: number; beta_kl: number; limit: number | null },
  ) {
    const dense = logRatio(batch, "ref_log_probs", "dpo_log_probs");
    const moved = logRatio(batch, "ref_log_probs", "old_log_probs");
    const token = rewardsPerToken(batch, rewards).map((reward, i) => {
      const own = beta_dense * dense[i]!;
      const limited = limit === null ? own : clip(own, -limit, limit);
      return reward + (limited - beta_kl * moved[i]!) * batch.mask[i]!;
    });
    return { response: rowSums(token, batch.T), token };
  },
} satisfies Table<[batch: Prepared, rewards: Rewards], Rewards>;
