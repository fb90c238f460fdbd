/** An algorithm as it was run on what a trainer recorded: `unipo_hooks.objective.recorded`. */
import { describePart } from "./registry";
import { merged } from "./slots";
import type { AlgorithmSpec, PartUse } from "./types";

/** Parts that compute a correction for the sampling engine: the trainer's own weights take their place. */
const SAMPLER: ReadonlySet<string> = new Set(["truncated", "banded"]);

/**
 * The algorithm on what the trainer recorded of it, so that it can be recomputed from one micro-batch.
 *
 * Advantages, further masks and sampler weights are those the trainer computed, over a batch that a micro-batch is only
 * a part of; filters have done their work before. A mask the trainer recorded nothing of is computed; the recorded one is
 * left out where the ratio takes it. The entropy bonus is left out: it has no share in the tokens, and the trainer's own
 * value of it is captured.
 */
export function asRecorded(spec: AlgorithmSpec, channels: ReadonlySet<string>): AlgorithmSpec {
  const hasMask = channels.has("policy_mask");
  const isComputed = (use: PartUse) =>
    describePart("mask", use.part) === null || (!hasMask && use.part !== "truncated_responses");
  const mask: PartUse[] = spec.parts.mask.filter(isComputed);
  if (hasMask && spec.parts.ratio.over !== "policy_mask") mask.unshift({ part: "recorded_mask" });
  const isRecorded = (use: PartUse) => channels.has("is_weights") && SAMPLER.has(use.part);
  const changes = {
    filter: [],
    reward: [],
    baseline: { part: "recorded" },
    scale: [],
    modulation: [],
    mask,
    weight: spec.parts.weight.map((use) => (isRecorded(use) ? { part: "recorded_weight" } : use)),
    constraint: spec.parts.constraint.filter((use) => use.part !== "entropy_bonus"),
  };
  return { ...spec, parts: merged(spec.parts, changes) };
}
