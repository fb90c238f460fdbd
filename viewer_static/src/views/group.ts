/** What the Step Inspector knows of a group's channels. */
import { missingRanks } from "../bundle/missing";
import type { Pass, Step, StepGroup } from "../bundle/step";
import type { Manifest } from "../bundle/types";
import { valuesOf } from "../channels";

/** Values of a channel for a pass's tokens; a value a response has as a whole is that of each of its tokens. */
export function channelValues({ response, tokens }: Pass, name: string): Float32Array | null {
  if (!tokens) return null;
  const values = valuesOf(tokens, name);
  if (values) return values;
  const whole = name === "advantages" ? response.advantage : name === "is_weights" ? response.isWeight : NaN;
  return Number.isNaN(whole) ? null : new Float32Array(tokens.n).fill(whole);
}

/** Values and mask of the passes given, where the channel is known: what scales and histograms are made of. */
export function samples(passes: readonly Pass[], name: string): { values: Float32Array; mask: ArrayLike<number> }[] {
  return passes.flatMap((pass) => {
    const values = channelValues(pass, name);
    return values && pass.tokens ? [{ values, mask: pass.tokens.mask }] : [];
  });
}

/** The passes that set a group's scale: the update's own; where it has none here, all that is known. */
export function scalePasses(group: StepGroup): Pass[] {
  return group.inUpdate ? group.passes.filter((pass) => pass.measured) : group.passes;
}

/** Stored channels that can be shown for a group: those of the update's tokens, and those given by response. */
export function storedChannels(step: Step, group: StepGroup): Set<string> {
  const stored = new Set<string>();
  for (const { response, tokens } of group.passes) {
    for (const name of tokens?.channels.keys() ?? []) {
      if (step.channels.has(name) || !group.inUpdate) stored.add(name);
    }
    if (!Number.isNaN(response.advantage)) stored.add("advantages");
    if (!Number.isNaN(response.isWeight)) stored.add("is_weights");
  }
  return stored;
}

/** What ranks that wrote nothing of a group's rollout leave open: these ranks, and how many responses there would be. */
export function lacking(manifest: Manifest | null, step: Step, group: StepGroup): { ranks: number[]; of: number | null } {
  const of = step.update.kind === "train" ? (manifest?.header.group_size ?? null) : null;
  const whole = !manifest || (of !== null && group.responses.length >= of);
  return { ranks: whole ? [] : missingRanks(manifest, step.update.attempt, group.ranks), of };
}
