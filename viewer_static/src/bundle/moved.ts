/** Which update of a run is worth a first look. */
import type { CapturedUpdate, UpdateMetrics } from "./types";

/**
 * The captured update in which the policy had moved furthest from the one that sampled: by the share of clipped tokens
 * or by how far the mean ratio is from 1, whichever is larger. The last captured one where nothing has moved or none
 * of it was measured; `null` where none was captured.
 */
export function mostMoved(updates: readonly CapturedUpdate[], metrics: readonly UpdateMetrics[]): number | null {
  const values = new Map(metrics.map((m) => [m.update, m.values]));
  let most = 0;
  let found = updates.at(-1)?.update ?? null;
  for (const { update } of updates) {
    const of = values.get(update);
    const ratio = Math.abs(1 - (of?.get("importance_sampling_ratio") ?? 1));
    const moved = Math.max(Number.isFinite(ratio) ? ratio : 0, of?.get("clip_fraction") ?? 0);
    if (moved > most) {
      most = moved;
      found = update;
    }
  }
  return found;
}
