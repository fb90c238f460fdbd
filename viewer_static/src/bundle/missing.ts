/** What of a run is not there: ranks that wrote nothing of an update, and updates that were lost. */
import type { RunIndex } from "./index";
import type { CapturedUpdate, Manifest } from "./types";

/** The ranks of an attempt that are not among those that `wrote` something, ascending. */
export function missingRanks(manifest: Manifest, attempt: number, wrote: readonly number[]): number[] {
  const ranks = manifest.attempts.find((a) => a.attempt === attempt)?.ranks ?? manifest.ranks;
  return Array.from({ length: ranks }, (_, rank) => rank).filter((rank) => !wrote.includes(rank));
}

/** Updates that not every rank wrote, and the ranks that are missing in any of them. */
export function incomplete(manifest: Manifest, updates: readonly CapturedUpdate[]): { updates: number; ranks: number[] } {
  const missing = updates.map((u) => missingRanks(manifest, u.attempt, u.parts.map((part) => part.rank)));
  return { updates: missing.filter((m) => m.length).length, ranks: [...new Set(missing.flat())].sort((a, b) => a - b) };
}

/** Updates the trainer made: those there is something of, and those that were lost before even their metrics were written. */
export function trained(manifest: Manifest, index: RunIndex): number {
  const captured = index.updates.train.length;
  const made = Math.max(index.metrics.train.length, captured);
  const announced = index.metrics.train.filter((m) => m.captured).length;
  const known = Math.max(0, announced - captured) + incomplete(manifest, index.updates.train).updates;
  const all = made + Math.max(0, manifest.lost.updates - known);
  return Math.max(made, Math.min(all, manifest.header.totalSteps || Infinity));
}
