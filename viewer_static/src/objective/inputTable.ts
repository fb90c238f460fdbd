/** Every input by name: the same table as `unipo_hooks.objective.inputs.INPUTS`. */

/** One array an algorithm may need. */
export interface Input {
  /** `BT`, `B`, `BK`, `K`, or `B|BT` where either will do. */
  readonly axes: string;
  readonly meaning: string;
  /** How a user comes by it: completes the sentence "to have it, ...". */
  readonly capture: string;
}

function input(axes: string, meaning: string, capture: string): Input {
  return { axes, meaning, capture };
}

const TRAINER = "use a trainer that computes it, or pass it";

export const INPUTS: Readonly<Record<string, Input>> = Object.freeze({
  __proto__: null as never,
  log_probs: input("BT", "Log-probability of the token under the policy being trained.", "capture an update"),
  mask: input("BT", "1 where the token counts in the loss.", "capture a rollout"),
  old_log_probs: input(
    "BT",
    "Log-probability under the policy that sampled the response.",
    "pass old_log_probs=log_probs where the trainer skips it because every ratio is 1",
  ),
  ref_log_probs: input(
    "BT",
    "Log-probability under the reference policy.",
    "train with a reference policy (TRL: beta > 0; verl: actor_rollout_ref.actor.use_kl_loss=True)",
  ),
  rollout_log_probs: input(
    "BT",
    "Log-probability the sampling engine reported.",
    "sample with an engine that reports it (TRL: use_vllm=True; verl: rollout.calculate_log_probs=True)",
  ),
  augmented_log_probs: input(
    "BT",
    "Log-probability with part of the prompt hidden, such as its image.",
    "run the second forward pass",
  ),
  dpo_log_probs: input("BT", "Log-probability under a policy trained with DPO.", "run that policy's forward pass"),
  entropies: input("BT", "Entropy of the policy at the position, in nats.", "capture an update with entropies"),
  old_entropies: input("BT", "Entropy of the sampling policy at the position.", TRAINER),
  sum_pi_squared: input(
    "BT",
    "Sum over the vocabulary of the squared probability.",
    "let verl compute it (actor.calculate_sum_pi_squared=True)",
  ),
  values: input("BT", "The critic's estimate of the return from here on.", "train with a critic (verl: gae)"),
  rewards: input("BT", "Reward given at the token.", TRAINER),
  ids: input("BT", "Token ids.", "capture a rollout"),
  reward: input("B", "Scalar reward of the response.", "capture a rollout"),
  reward_components: input("BK", "What each reward function gave.", "capture a rollout with its reward functions"),
  reward_weights: input("K", "Weight of each reward function.", "pass the trainer's reward weights"),
  group: input("B", "Which prompt the response answers; any whole numbers or texts.", "capture a rollout"),
  advantages: input("B|BT", "Advantages as the trainer computed them.", "capture a rollout"),
  is_weights: input(
    "B|BT",
    "Detached weight that corrects for a sampler that disagrees with the trainer.",
    "train with a sampler correction",
  ),
  policy_mask: input("BT", "Further factors of 0 or 1 on the policy term.", "capture an update"),
  selected: input("BT", "1 where a random or batch-wide choice fell on the token.", "record the choice while training"),
  source: input("B", "Where the row comes from: 0 the policy, 1 and above elsewhere.", "pass it"),
  truncated: input("B", "1 where the response was cut off at the length limit.", "capture a rollout"),
  greedy_reward: input("B", "Reward of the greedy answer to the same prompt.", "train with ReMax"),
  baselines: input("B|BT", "An estimate of the reward to expect, from history or a search.", TRAINER),
  pool_mean: input("B", "Mean reward over every response ever sampled for the prompt.", TRAINER),
  pool_std: input("B", "Standard deviation of the reward over that pool.", TRAINER),
  historic_advantages: input("B", "Advantage against all rewards of the prompt so far.", TRAINER),
  visits: input("B", "How often the prompt was trained on, this time included.", TRAINER),
  segments: input("BT", "Number of the segment the token belongs to, from 0.", "pass it"),
  turns: input("BT", "Number of the turn the token belongs to, from 0.", "pass it"),
  anchors: input("BT", "Environment state the token's step started from; equal where states are equal.", "pass it"),
  token_weights: input("BT", "Weight of the token's advantage.", "pass it"),
  planning: input("BT", "1 where the token belongs to a planning phrase.", "pass it"),
  difficulty: input("B", "How hard the prompt is, from 0 to 1.", "pass it"),
  answers: input("B", "Which answer the response gives; equal where answers are equal.", "pass it"),
});
