/** Which update of a run is worth a first look. */
import type { CapturedUpdate, UpdateMetrics } from "./types";

/** An update the policy had moved far in, by what that was found, and how far: a share of tokens, or a mean ratio. */
export interface Moved {
  readonly update: number;
  readonly by: "clipped" | "ratio";
  readonly value: number;
}

/**
 * The captured update in which the policy had moved furthest from the one that sampled: by the share of clipped tokens
 * or by how far the mean ratio is from 1, whichever is larger. `null` where nothing has moved or none of it was measured.
 */
export function furthestMoved(updates: readonly CapturedUpdate[], metrics: readonly UpdateMetrics[]): Moved | null {
  const values = new Map(metrics.map((m) => [m.update, m.values]));
  let most = 0;
  let found: Moved | null = null;
  for (const { update } of updates) {
    const of = values.get(update);
    const ratio = of?.get("importance_sampling_ratio") ?? 1;
    const clipped = of?.get("clip_fraction") ?? 0;
    const away = Math.abs(1 - ratio);
    if (Number.isFinite(away) && away > most) [most, found] = [away, { update, by: "ratio", value: ratio }];
    if (clipped > most) [most, found] = [clipped, { update, by: "clipped", value: clipped }];
  }
  return found;
}

/** The captured update for a first look: the furthest moved, else the last one; `null` where none was captured. */
export function mostMoved(updates: readonly CapturedUpdate[], metrics: readonly UpdateMetrics[]): number | null {
  return furthestMoved(updates, metrics)?.update ?? updates.at(-1)?.update ?? null;
}

/** How near 1 a mean ratio is that is 1 but for rounding. */
const ROUNDING = 1e-3;

/** Whether the policy is still the one that sampled, by the update's metrics: ratios of 1 and nothing clipped; `null` where they do not say. */
export function unmoved(metrics: UpdateMetrics | undefined): boolean | null {
  const ratio = metrics?.values.get("importance_sampling_ratio");
  const clipped = metrics?.values.get("clip_fraction");
  if (ratio === undefined && clipped === undefined) return null;
  return Math.abs((ratio ?? 1) - 1) <= ROUNDING && !clipped;
}
