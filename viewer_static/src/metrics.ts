/**
 * The metrics shown beside an update, in reading order. Definitions are those of `unipo_hooks.channels.METRICS`, word
 * for word: tests/viewer compares them.
 */
export interface Metric {
  name: string;
  label: string;
  meaning: string;
  /** A share of something: shown in per cent. */
  share?: boolean;
}

export const METRICS: readonly Metric[] = [
  { name: "reward", label: "reward", meaning: "Mean reward of the responses of the rollouts this update trains on." },
  {
    name: "reward_std",
    label: "reward std",
    meaning: "Standard deviation of the reward over the responses of those rollouts.",
  },
  {
    name: "group_reward_std",
    label: "group std",
    meaning: "Standard deviation of the reward inside a prompt group, averaged over the groups.",
  },
  {
    name: "zero_std_groups",
    label: "no signal",
    meaning: "Share of prompt groups in which every response got the same reward: they teach nothing.",
    share: true,
  },
  { name: "response_length", label: "length", meaning: "Mean length of a response in tokens, without those of tools." },
  {
    name: "advantage_std",
    label: "advantage std",
    meaning: "Standard deviation of the advantage over the responses of this update.",
  },
  { name: "entropy", label: "entropy", meaning: "Mean entropy of the policy over the tokens that count." },
  {
    name: "kl",
    label: "KL",
    meaning: "Mean estimated divergence from the reference policy over the tokens that count.",
  },
  {
    name: "importance_sampling_ratio",
    label: "mean ratio",
    meaning: "Mean of π_θ/π_old over the tokens that count, or the responses where each has one ratio; 1 means the policy has not moved.",
  },
  {
    name: "clip_fraction",
    label: "clipped",
    meaning: "Share of these tokens, or responses, whose ratio is out of the clip range on the side they are pushed to.",
    share: true,
  },
  {
    name: "policy_loss",
    label: "policy loss",
    meaning: "The trainer's loss for the update, without entropy bonus and router loss.",
  },
  {
    name: "loss_gap",
    label: "loss gap",
    meaning: "How far the loss recomputed from captured tokens is from the trainer's own; rounding is about 1e-7.",
  },
  {
    name: "grad_norm",
    label: "grad norm",
    meaning: "Norm of the gradient before clipping, where the trainer logged it.",
  },
  { name: "learning_rate", label: "learning rate", meaning: "Learning rate of the update." },
];
