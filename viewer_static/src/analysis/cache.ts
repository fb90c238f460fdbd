/** Analyses that were made are kept for a while: what-if is switched off and on, and a slider goes back to where it was. */
import type { Step } from "../bundle/step";
import type { Manifest } from "../bundle/types";
import type { AlgorithmSpec } from "../objective";
import { analyse } from "./analyse";
import type { Analysis } from "./types";

/** Analyses to keep of an update: about 9 MB each where it has 64 × 1024 tokens. */
const KEEP = 4;

const known = new WeakMap<Step, Map<string, Analysis>>();

/** `analyse`, once for each algorithm on an update: the same object as long as it is kept. */
export function analysed(step: Step, manifest: Manifest, spec: AlgorithmSpec, own: boolean): Analysis {
  let ofStep = known.get(step);
  if (!ofStep) known.set(step, (ofStep = new Map()));
  const key = JSON.stringify([own, spec.id, spec.parts, spec.mixture]);
  const found = ofStep.get(key) ?? analyse(step, manifest, spec, own);
  ofStep.delete(key);
  ofStep.set(key, found); // the most recently used goes last
  for (const oldest of ofStep.keys()) {
    if (ofStep.size <= KEEP) break;
    ofStep.delete(oldest);
  }
  return found;
}
