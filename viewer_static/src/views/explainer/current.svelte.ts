/** What the Explainer speaks of: the open token, or a telling one, in the algorithm shown and in the one beside it. */
import { type Analysis, hardest, type Hardest } from "../../analysis";
import { rankOf, rewardWeights } from "../../analysis/batches";
import type { Pass, Step, StepGroup } from "../../bundle/step";
import { integer } from "../../format";
import { type AlgorithmSpec, differences, type Difference } from "../../objective";
import { analysis } from "../../state/analysis.svelte";
import { pickedGroup } from "../../state/picked.svelte";
import { run } from "../../state/run.svelte";
import { selection } from "../../state/selection.svelte";
import { open } from "../../state/step.svelte";
import { cardsOf, type HeadingCards } from "./cards";
import type { Reading } from "./reading";
import { type Stages, stagesOf } from "./stages";

class Explained {
  /** The algorithm whose cards are shown: the what-if's where there is one. */
  readonly spec: AlgorithmSpec | null = $derived(analysis.whatSpec ?? analysis.ownSpec);
  /** The algorithm beside, where both are made of slots. */
  readonly versus: AlgorithmSpec | null = $derived(analysis.versusSpec?.display || this.spec?.display ? null : analysis.versusSpec);

  readonly #picked: Hardest | null = $derived.by(() => {
    const { pass: key, token } = selection;
    const pass = pickedGroup.current?.passes.find((each) => each.key === key);
    return pass?.tokens && token !== null && token < pass.tokens.n ? { pass, token, alike: 1 } : null;
  });
  readonly spot: Hardest | null = $derived(this.#picked ?? hardest(pickedGroup.current?.passes ?? [], analysis.shown?.missing ? analysis.own : analysis.shown));
  /** Nobody picked the token: why it is this one; "" where a person did. */
  readonly preview: string = $derived(this.#picked || !this.spot ? "" : whyThis(this.spot.alike));

  // Of a group, not of a token: another token of it is shown without computing them again.
  readonly #stagesA: Stages | null = $derived(stages(this.spec, pickedGroup.current));
  readonly #stagesB: Stages | null = $derived(stages(this.versus, pickedGroup.current));
  readonly a: Reading | null = $derived(reading(this.spec, analysis.shown, this.spot, this.#stagesA));
  readonly b: Reading | null = $derived(reading(this.versus, analysis.versus, this.spot, this.#stagesB));

  readonly cards: readonly HeadingCards[] = $derived(this.spec && !this.spec.display ? cardsOf(this.spec, this.a) : []);
  readonly others: readonly HeadingCards[] = $derived(this.versus ? cardsOf(this.versus, this.b) : []);
  readonly differences: readonly Difference[] = $derived(this.spec && this.versus ? differences(this.spec, this.versus) : []);
}

export const explained = new Explained();

function stages(spec: AlgorithmSpec | null, group: StepGroup | null): Stages | null {
  const { step } = open;
  if (!spec || spec.display || !group || !step || !run.manifest) return null;
  const components = group.responses[0]?.components.length ?? 0;
  return stagesOf(spec, group, rewardWeights(run.manifest, step.update.attempt, components));
}

function reading(
  spec: AlgorithmSpec | null,
  of: Analysis | null,
  spot: Hardest | null,
  stages: Stages | null,
): Reading | null {
  const group = pickedGroup.current;
  if (!spec || !group || !spot || !stages || !open.step) return null;
  const { pass, token } = spot;
  const result = of?.passes.get(pass.key) ?? null;
  return { spec, group, response: pass.response, pass, token, result, stages, constantLength: constantLength(open.step, pass), evaluation: open.step.update.kind === "eval" };
}

/** What a loss with a constant length divides by, unless its algorithm says otherwise: the trainer's, else the width of the forward pass. */
function constantLength(step: Step, { response, measured }: Pass): number {
  const part = step.update.parts.find((each) => each.rank === rankOf(response));
  return (part?.length_constant || (measured && part?.micro_batches[measured.microBatch]?.width)) ?? NaN;
}

function whyThis(alike: number): string {
  if (Number.isNaN(alike)) return "No token is picked, so this is the first one that counts.";
  if (alike === 0) return "No token is picked, so this is the first one that counts: none is pushed here.";
  if (alike > 1) return `No token is picked, so this is the first of ${integer(alike)} in the group that are pushed equally hard.`;
  return "No token is picked, so this is the one pushed hardest here.";
}
