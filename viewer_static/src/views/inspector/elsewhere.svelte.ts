/** What share of a response was clipped in the updates it was looked at in since the page was opened. */
import { SvelteMap } from "svelte/reactivity";
import type { CapturedUpdate } from "../../bundle/types";

/** By `shareKey`. */
export const clippedShares = new SvelteMap<string, number>();

export function shareKey(of: CapturedUpdate, update: number, rollout: number, response: string): string {
  return `${of.kind}:${of.attempt}:${update}:${rollout}:${response}`;
}
