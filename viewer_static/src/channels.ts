/** The channels as a reader meets them: labels, units, one-line meanings, and those derived from stored ones. */
import type { ResponseTokens } from "./bundle/join";

export interface Channel {
  name: string;
  label: string;
  unit: "nats" | "";
  /** One sentence for someone who has never read a paper. */
  meaning: string;
  /** `diverging` around `centre`; `sequential` from `centre` on, upwards or (`down`) downwards. */
  scale: "diverging" | "sequential";
  centre: number;
  down?: boolean;
  /** Words at the two ends of the legend: below and above the centre, or at the centre and far from it. */
  ends: readonly [string, string];
  /** A fixed far end, where the channel has one. */
  limit?: number;
  /** Has a button of its own; the others are behind “More”. */
  first?: boolean;
  /** What the algorithm makes of the tokens: computed here, and stored only where a part of the user's own gives it. */
  computed?: boolean;
  /** Channels a derived one is computed from. */
  needs?: readonly string[];
  derive?: (of: (name: string) => Float32Array) => Float32Array;
}

function difference(a: Float32Array, b: Float32Array): Float32Array {
  return a.map((value, i) => value - (b[i] ?? NaN));
}

/** In the order of the switch: what a reader asks first comes first. */
export const CHANNELS: readonly Channel[] = [
  {
    name: "push",
    label: "Push",
    unit: "",
    meaning: "Which way this update pushes the token, and how hard: above 0 (blue) it is made more likely, below 0 (orange) less likely.",
    scale: "diverging",
    centre: 0,
    first: true,
    ends: ["made less likely", "made more likely"],
    computed: true,
    needs: ["gradient_weight"],
    derive: (of) => of("gradient_weight").map((value) => 0 - value),
  },
  {
    name: "token_objective",
    label: "Objective",
    unit: "",
    meaning: "The token's term of the objective that training raises, before terms are averaged: constraints such as the KL are taken off.",
    scale: "diverging",
    centre: 0,
    first: true,
    ends: ["lowers it", "raises it"],
    computed: true,
  },
  {
    name: "log_ratio",
    label: "Log-ratio",
    unit: "nats",
    meaning: "How far training has moved this token since it was sampled: above 0 it is more likely now, below 0 less likely.",
    scale: "diverging",
    centre: 0,
    first: true,
    ends: ["less likely now", "more likely now"],
    needs: ["log_probs", "old_log_probs"],
    derive: (of) => difference(of("log_probs"), of("old_log_probs")),
  },
  {
    name: "token_kl",
    label: "KL",
    unit: "nats",
    meaning: "How far the model has drifted from its reference at this token, as the trainer estimates it: 0 means not at all.",
    scale: "sequential",
    centre: 0,
    first: true,
    ends: ["as the reference", "drifted"],
  },
  {
    name: "entropies",
    label: "Entropy",
    unit: "nats",
    meaning: "How undecided the model was at this position: 0 means it saw one choice, higher means many.",
    scale: "sequential",
    centre: 0,
    first: true,
    ends: ["one choice", "undecided"],
  },
  {
    name: "probability",
    label: "Probability",
    unit: "",
    meaning: "How likely the model finds this token here, from 0 to 1. Strong colour marks the unlikely ones.",
    scale: "sequential",
    centre: 1,
    down: true,
    limit: 0,
    first: true,
    ends: ["certain", "unlikely"],
    needs: ["log_probs"],
    derive: (of) => of("log_probs").map(Math.exp),
  },
  {
    name: "advantages",
    label: "Advantage",
    unit: "",
    meaning: "How much better this did than expected: above 0 training makes it more likely, below 0 less likely.",
    scale: "diverging",
    centre: 0,
    first: true,
    ends: ["worse", "better"],
  },
  {
    name: "mismatch",
    label: "Mismatch",
    unit: "nats",
    meaning: "Trainer's log-prob minus the sampling engine's for the same token: 0 means that the two agree.",
    scale: "diverging",
    centre: 0,
    first: true,
    ends: ["sampler gave it more", "trainer gave it more"],
    needs: ["old_log_probs", "rollout_log_probs"],
    derive: (of) => difference(of("old_log_probs"), of("rollout_log_probs")),
  },
  {
    name: "log_probs",
    label: "Log-prob",
    unit: "nats",
    meaning: "Logarithm of the token's probability at this update: 0 is certain, −2.3 is one in ten, −4.6 one in a hundred.",
    scale: "sequential",
    centre: 0,
    down: true,
    ends: ["certain", "unlikely"],
  },
  {
    name: "old_log_probs",
    label: "Old log-prob",
    unit: "nats",
    meaning: "Log-prob under the policy that sampled the response, as the trainer computed it.",
    scale: "sequential",
    centre: 0,
    down: true,
    ends: ["certain", "unlikely"],
  },
  {
    name: "ref_log_probs",
    label: "Reference log-prob",
    unit: "nats",
    meaning: "Log-prob under the reference policy: the model that training is kept close to.",
    scale: "sequential",
    centre: 0,
    down: true,
    ends: ["certain", "unlikely"],
  },
  {
    name: "rollout_log_probs",
    label: "Sampler log-prob",
    unit: "nats",
    meaning: "Log-prob that the sampling engine itself reported when it wrote the token.",
    scale: "sequential",
    centre: 0,
    down: true,
    ends: ["certain", "unlikely"],
  },
  {
    name: "gradient_weight",
    label: "Gradient weight",
    unit: "",
    meaning: "Derivative of the loss by the token's log-prob, as the trainer's own part gave it: the push is minus this.",
    scale: "diverging",
    centre: 0,
    ends: ["made more likely", "made less likely"],
  },
  {
    name: "values",
    label: "Value",
    unit: "",
    meaning: "The critic's guess of the return still to come from here.",
    scale: "diverging",
    centre: 0,
    ends: ["loss expected", "gain expected"],
  },
  {
    name: "returns",
    label: "Return",
    unit: "",
    meaning: "The return the critic is trained towards at this token.",
    scale: "diverging",
    centre: 0,
    ends: ["negative", "positive"],
  },
  {
    name: "rewards",
    label: "Token reward",
    unit: "",
    meaning: "The reward given at this very token.",
    scale: "diverging",
    centre: 0,
    ends: ["negative", "positive"],
  },
  {
    name: "is_weights",
    label: "Sampler weight",
    unit: "",
    meaning: "Weight that corrects for a sampler that disagrees with the trainer: 1 means no correction.",
    scale: "diverging",
    centre: 1,
    ends: ["counts less", "counts more"],
  },
  {
    name: "policy_mask",
    label: "Policy mask",
    unit: "",
    meaning: "A further factor the trainer put on this token's share of the loss: 0 leaves it out, 1 keeps it.",
    scale: "sequential",
    centre: 0,
    limit: 1,
    ends: ["left out", "kept"],
  },
];

const BY_NAME = new Map(CHANNELS.map((channel) => [channel.name, channel]));

/** A channel by its name. One this viewer has never heard of is shown under its own name, without a claim. */
export function channelNamed(name: string): Channel {
  return (
    BY_NAME.get(name) ?? {
      name,
      label: name,
      unit: "",
      meaning: "A channel this viewer has no description of.",
      scale: "diverging",
      centre: 0,
      ends: ["negative", "positive"],
    }
  );
}

/** A channel relative to the response: how far a token is from the mean of the tokens of its response that count. */
export function relativeTo(channel: Channel): Channel {
  const { limit: _, down: __, ...rest } = channel;
  return { ...rest, scale: "diverging", centre: 0, ends: ["below its response's mean", "above it"] };
}

/** Words for the values of `mask_reason`. */
export const MASK_REASONS: Readonly<Record<number, string>> = {
  1: "written by a tool or environment",
  2: "response cut off at the length limit",
  3: "not counted by the trainer",
};

const derived = new WeakMap<ResponseTokens, Map<string, Float32Array>>();

/** Values of a channel, stored or derived, for one response; `null` where they are not known. */
export function valuesOf(tokens: ResponseTokens, name: string): Float32Array | null {
  const stored = tokens.channels.get(name);
  if (stored) return stored;
  const channel = BY_NAME.get(name);
  if (!channel?.derive || !channel.needs?.every((need) => tokens.channels.has(need))) return null;
  let cache = derived.get(tokens);
  if (!cache) derived.set(tokens, (cache = new Map()));
  let values = cache.get(name);
  if (!values) cache.set(name, (values = channel.derive((need) => tokens.channels.get(need) as Float32Array)));
  return values;
}

/** Channels that can be shown, given the stored ones, in the order of the switch; unknown ones last. */
export function available(stored: ReadonlySet<string>): Channel[] {
  const known = CHANNELS.filter((c) => stored.has(c.name) || (c.needs?.every((need) => stored.has(need)) ?? false));
  const unknown = [...stored].filter((name) => !BY_NAME.has(name)).sort();
  return [...known, ...unknown.map(channelNamed)];
}

/**
 * The channel to start with: the push where it is known and there is one, what the update changed, or where the model
 * was undecided, or what it thinks. `of` gives the values of a channel, a response at a time.
 */
export function defaultChannel(stored: ReadonlySet<string>, of: (name: string) => Iterable<ArrayLike<number>>): string | null {
  const names = new Set(available(stored).map((c) => c.name));
  for (const name of ["push", "log_ratio"]) if (names.has(name) && [...of(name)].some(moves)) return name;
  for (const name of ["entropies", "log_probs"]) if (names.has(name)) return name;
  return names.values().next().value ?? null;
}

function moves(values: ArrayLike<number>): boolean {
  return Array.prototype.some.call(values, (v: number) => !Number.isNaN(v) && v !== 0);
}
