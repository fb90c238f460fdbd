/** What belongs together across the panes: a metric, the slots of the algorithm that make it, the channel that shows it. */
import type { Slot } from "./objective/types";

export interface Focus {
  kind: "metric" | "slot" | "channel";
  name: string;
}

interface Kin {
  metrics: readonly string[];
  slots: readonly Slot[];
  channels: readonly string[];
}

/** What one question is asked about: its numbers over the run, in the algorithm, on the tokens. */
const KIN: readonly Kin[] = [
  { metrics: ["reward", "reward_std"], slots: ["reward"], channels: ["rewards"] },
  { metrics: ["group_reward_std", "zero_std_groups"], slots: ["baseline", "scale", "filter"], channels: ["advantages"] },
  { metrics: ["advantage_mean", "advantage_std"], slots: ["baseline", "scale", "modulation"], channels: ["advantages"] },
  { metrics: ["importance_sampling_ratio"], slots: ["ratio"], channels: ["log_ratio"] },
  { metrics: ["clip_fraction", "clip_fraction_low", "clip_fraction_high"], slots: ["gate", "bounds"], channels: ["log_ratio"] },
  { metrics: ["kl"], slots: ["constraint"], channels: ["token_kl"] },
  { metrics: ["entropy"], slots: ["mask"], channels: ["entropies"] },
  { metrics: ["response_length"], slots: ["aggregation"], channels: [] },
  { metrics: [], slots: ["weight"], channels: ["mismatch", "is_weights"] },
  {
    metrics: ["policy_objective", "policy_loss", "total_loss", "loss_gap"],
    slots: ["gate", "aggregation"],
    channels: ["token_objective"],
  },
  { metrics: ["grad_norm"], slots: ["gate", "aggregation", "constraint"], channels: ["push"] },
];

export interface Lit {
  metrics: ReadonlySet<string>;
  slots: ReadonlySet<string>;
  channels: ReadonlySet<string>;
}

const NONE: Lit = { metrics: new Set(), slots: new Set(), channels: new Set() };

/** The counterparts of what is pointed at, itself included. */
export function lit(focus: Focus | null): Lit {
  if (!focus) return NONE;
  const own = `${focus.kind}s` as keyof Kin;
  const kin = KIN.filter((each) => (each[own] as readonly string[]).includes(focus.name));
  const all = (of: keyof Kin) => new Set<string>(kin.flatMap((each) => each[of] as readonly string[]));
  const found = { metrics: all("metrics"), slots: all("slots"), channels: all("channels") };
  // Of its own kind only itself: a metric does not light its neighbours.
  return { ...found, [own]: new Set([focus.name]) };
}
