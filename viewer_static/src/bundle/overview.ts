/** What a bundle says of itself without its tokens: manifest, index and metrics. A page reads no more to show a run. */
import { buildIndex, type RunIndex } from "./index";
import { ofAllRanks, parseManifest } from "./manifest";
import type { Source } from "./source";
import type { Manifest } from "./types";

export interface Overview {
  manifest: Manifest;
  index: RunIndex;
  /** The texts it was read from: of use only to tell whether another reading found anything new. */
  texts: readonly string[];
}

/**
 * Reads manifest, index and metrics; `null` where there is no manifest. Parses only what is not as `before`, and hands
 * that back where nothing changed.
 */
export async function readOverview(source: Source, before: Overview | null = null): Promise<Overview | null> {
  // The manifest first: a status of "finished" then speaks of an index that is complete.
  const bytes = await source.read("manifest.json", true);
  if (!bytes) return null;
  const manifest = parseManifest(decode(bytes));
  const ranks = Array.from({ length: manifest.ranks }, (_, rank) => rank);
  const text = async (name: string) => decode((await source.read(name, true)) ?? new Uint8Array());
  // What ranks say of themselves before their lines, for the same reason.
  const others = await Promise.all(ranks.slice(1).map((rank) => text(`rank.r${rank}.json`)));
  const [index, metrics] = await Promise.all([
    Promise.all(ranks.map((rank) => text(`index.r${rank}.jsonl`))),
    Promise.all(ranks.map((rank) => text(`metrics.r${rank}.jsonl`))),
  ]);
  const texts = [decode(bytes), ...others, ...index, ...metrics];
  if (before && texts.length === before.texts.length && texts.every((t, i) => t === before.texts[i])) return before;
  return { manifest: ofAllRanks(manifest, others), index: buildIndex({ index, metrics }, manifest.attempts), texts };
}

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
