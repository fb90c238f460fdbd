/** The algorithm a run was trained with, as its manifest says. */
import type { Manifest } from "../bundle/types";
import { type AlgorithmSpec, specFrom } from "../objective";

interface Read {
  readonly spec: AlgorithmSpec | null;
  /** Why there is none, in one line. */
  readonly fault: string;
}

const NOT_SAID: Read = { spec: null, fault: "The run does not say which algorithm it was trained with." };

/** By the JSON as it lies in the manifest: read once. */
const known = new WeakMap<object, Read>();

/** The algorithm of an attempt, or why it cannot be had. Nothing in the JSON is trusted. */
export function readOwn(manifest: Manifest, attempt: number): Read {
  const json = manifest.attempts.find((each) => each.attempt === attempt)?.algorithm;
  if (typeof json !== "object" || json === null) return NOT_SAID;
  let read = known.get(json);
  if (!read) {
    try {
      read = { spec: specFrom(json), fault: "" };
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      read = { spec: null, fault: `The definition of the run's algorithm cannot be read: ${why}` };
    }
    known.set(json, read);
  }
  return read;
}

/** The algorithm of the newest attempt: what is spoken of while no update is open. */
export function newestSpec(manifest: Manifest): AlgorithmSpec | null {
  const newest = manifest.attempts.at(-1);
  return newest ? readOwn(manifest, newest.attempt).spec : null;
}

/** The algorithm of the update's attempt; `null` where the run does not say, or its JSON cannot be read. */
export function ownSpec(manifest: Manifest, attempt: number): AlgorithmSpec | null {
  return readOwn(manifest, attempt).spec;
}
