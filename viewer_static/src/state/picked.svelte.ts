/** The group that is open: the chosen one, or one that is worth a first look. */
import type { Step, StepGroup } from "../bundle/step";
import { open } from "./step.svelte";
import { selection } from "./selection.svelte";

/** A group with tokens and with something to learn, of this update where it has one. */
export function defaultGroup(step: Step): StepGroup | null {
  const inside = step.groups.filter((g) => g.inUpdate > 0);
  return inside.find((g) => g.kept && !g.flat) ?? inside.find((g) => g.kept) ?? inside[0] ?? step.groups[0] ?? null;
}

class PickedGroup {
  readonly current: StepGroup | null = $derived.by(() => {
    const { step } = open;
    if (!step) return null;
    return step.groups.find((g) => g.key === selection.group) ?? defaultGroup(step);
  });
}

export const pickedGroup = new PickedGroup();
