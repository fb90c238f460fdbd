/**
 * The metrics a bundle can carry, in reading order. Definitions are those of `unipo_hooks.channels.METRICS`, word for
 * word: tests/viewer compares them. Metrics the trainer logged beside them go by their own name.
 */

/** What a metric speaks of: how well it goes, what the policy does, how the optimiser steps. */
export type Family = "outcome" | "policy" | "optimiser";

export interface Metric {
  name: string;
  label: string;
  meaning: string;
  /** How to read it. */
  hint: string;
  family: Family;
  /** A share of something: shown in per cent. */
  share?: boolean;
  /** Logged by the trainer under this name: nothing else is known of it. */
  own?: boolean;
}

export const METRICS: readonly Metric[] = [
  {
    name: "reward",
    label: "reward",
    meaning: "Mean reward of the responses of the rollouts this update trains on.",
    hint: "It should rise, in noisy steps; a long flat line means that nothing is learned, or that nothing is left to learn.",
    family: "outcome",
  },
  {
    name: "reward_std",
    label: "reward std",
    meaning: "Standard deviation of the reward over the responses of those rollouts.",
    hint: "It often falls as answers get alike; near 0 there is little left to tell good answers from bad ones.",
    family: "outcome",
  },
  {
    name: "group_reward_std",
    label: "group std",
    meaning: "Standard deviation of the reward inside a prompt group, averaged over the groups.",
    hint: "This is what group-relative methods learn from: at 0 every answer to a prompt scores the same, and the signal is gone.",
    family: "outcome",
  },
  {
    name: "zero_std_groups",
    label: "no signal",
    meaning: "Share of prompt groups in which every response got the same reward: they teach nothing.",
    hint: "If it climbs towards 100 %, the prompts have become too easy, or are still too hard.",
    family: "outcome",
    share: true,
  },
  {
    name: "response_length",
    label: "length",
    meaning: "Mean length of a response in tokens, without those of tools.",
    hint: "A slow rise can mean longer reasoning; a jump to the limit, or a fall to almost nothing, calls for reading the answers.",
    family: "outcome",
  },
  {
    name: "policy_objective",
    label: "objective",
    meaning: "What the update climbs: minus the policy loss.",
    hint: "It need not rise: on fresh samples it starts near 0 again. Judge a run by its reward.",
    family: "policy",
  },
  {
    name: "advantage_mean",
    label: "advantage",
    meaning: "Mean advantage over the responses of this update.",
    hint: "Near 0 where advantages are centred in their group; a steady offset pushes all answers one way.",
    family: "policy",
  },
  {
    name: "advantage_std",
    label: "advantage std",
    meaning: "Standard deviation of the advantage over the responses of this update.",
    hint: "Close to 1 where advantages are divided by their group's spread; it drops as more groups have no signal.",
    family: "policy",
  },
  {
    name: "entropy",
    label: "entropy",
    meaning: "Mean entropy of the policy over the tokens that count.",
    hint: "A slow fall is normal; a collapse to 0 means the policy has stopped exploring, a rise that it grows unsure.",
    family: "policy",
  },
  {
    name: "kl",
    label: "KL",
    meaning: "Mean estimated divergence from the reference policy over the tokens that count.",
    hint: "It starts at 0 and grows as the policy leaves the reference; a spike means a sudden jump away from it.",
    family: "policy",
  },
  {
    name: "importance_sampling_ratio",
    label: "mean ratio",
    meaning:
      "Mean of π_θ/π_old over the tokens that count, or the responses where each has one ratio; 1 means the policy has not moved.",
    hint: "Exactly 1 on fresh samples, near 1 on later passes; far from 1 the samples are stale.",
    family: "policy",
  },
  {
    name: "clip_fraction",
    label: "clipped",
    meaning: "Share of these tokens, or responses, whose ratio is out of the clip range on the side they are pushed to.",
    hint: "0 on fresh samples; a few per cent on later passes is common, much more means that steps are too large.",
    family: "policy",
    share: true,
  },
  {
    name: "clip_fraction_low",
    label: "clipped below",
    meaning: "The part of it below the range, with a negative advantage.",
    hint: "Tokens already pushed down far enough; if it leads, the update mostly unlearns.",
    family: "policy",
    share: true,
  },
  {
    name: "clip_fraction_high",
    label: "clipped above",
    meaning: "The part of it above the range, with a positive advantage.",
    hint: "Tokens already pushed up far enough; if it leads, a higher upper bound would let rare tokens grow.",
    family: "policy",
    share: true,
  },
  {
    name: "policy_loss",
    label: "policy loss",
    meaning: "The trainer's loss for the update, without entropy bonus and router loss.",
    hint: "It hovers around 0 and need not fall: the data are new at every rollout. A spike is worth opening.",
    family: "optimiser",
  },
  {
    name: "total_loss",
    label: "total loss",
    meaning: "The trainer's loss for the update, everything included.",
    hint: "Where it leaves the policy loss, the rest is entropy bonus or router loss.",
    family: "optimiser",
  },
  {
    name: "grad_norm",
    label: "grad norm",
    meaning: "Norm of the gradient before clipping, where the trainer logged it.",
    hint: "Steady is good; a spike is an update that moved far, 0 one that taught nothing.",
    family: "optimiser",
  },
  {
    name: "learning_rate",
    label: "learning rate",
    meaning: "Learning rate of the update.",
    hint: "It follows its schedule: often a warm-up, then flat or falling.",
    family: "optimiser",
  },
  {
    name: "loss_gap",
    label: "loss gap",
    meaning: "How far the loss recomputed from captured tokens is from the trainer's own; rounding is about 1e-7.",
    hint: "It should stay flat and tiny; if it grows, the page's numbers are not quite the trainer's.",
    family: "optimiser",
  },
];

const KNOWN: ReadonlyMap<string, Metric> = new Map(METRICS.map((metric) => [metric.name, metric]));

/** What is known of a metric; one of the trainer's own is shown under the name it was logged by. */
export function metricOf(name: string): Metric {
  return (
    KNOWN.get(name) ?? {
      name,
      label: name,
      meaning: "Logged by the trainer under this name.",
      hint: "What it means is in the trainer's own documentation.",
      family: "optimiser",
      own: true,
    }
  );
}
