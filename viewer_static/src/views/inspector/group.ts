/** What the Step Inspector knows of a group. */
import type { Analysis } from "../../analysis/types";
import { missingRanks } from "../../bundle/missing";
import type { Step, StepGroup } from "../../bundle/step";
import type { Manifest } from "../../bundle/types";
import { resultOf } from "./values";

/** Channels that can be shown for a group: those of the update's tokens, those given by response, those computed. */
export function knownChannels(step: Step, group: StepGroup, analysis: Analysis | null): Set<string> {
  const known = new Set<string>();
  for (const pass of group.passes) {
    const { response, tokens } = pass;
    for (const name of tokens?.channels.keys() ?? []) {
      if (step.channels.has(name) || !group.inUpdate) known.add(name);
    }
    if (!Number.isNaN(response.advantage)) known.add("advantages");
    if (!Number.isNaN(response.isWeight)) known.add("is_weights");
    if (resultOf(analysis, pass)) for (const name of ["push", "token_objective", "advantages"]) known.add(name);
  }
  return known;
}

/** What ranks that wrote nothing of a group's rollout leave open: these ranks, and how many responses there would be. */
export function lacking(manifest: Manifest | null, step: Step, group: StepGroup): { ranks: number[]; of: number | null } {
  const of = step.update.kind === "train" ? (manifest?.header.group_size ?? null) : null;
  const whole = !manifest || (of !== null && group.responses.length >= of);
  return { ranks: whole ? [] : missingRanks(manifest, step.update.attempt, group.ranks), of };
}
