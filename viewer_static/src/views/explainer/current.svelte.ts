/** What the Explainer speaks of: the open token, or a telling one, in the algorithm shown and in the one beside it. */
import type { Analysis } from "../../analysis";
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

interface Spot {
  pass: Pass;
  token: number;
  /** Tokens of the group that are pushed as hard: 1 where it stands alone, 0 where none is pushed, NaN where no push is known. */
  alike: number;
}

class Explained {
  /** The algorithm whose cards are shown: the what-if's where there is one. */
  readonly spec: AlgorithmSpec | null = $derived(analysis.whatSpec ?? analysis.ownSpec);
  /** The algorithm beside, where both are made of slots. */
  readonly versus: AlgorithmSpec | null = $derived(analysis.versusSpec?.display || this.spec?.display ? null : analysis.versusSpec);

  readonly #picked: Spot | null = $derived.by(() => {
    const { pass: key, token } = selection;
    const pass = pickedGroup.current?.passes.find((each) => each.key === key);
    return pass?.tokens && token !== null && token < pass.tokens.n ? { pass, token, alike: 1 } : null;
  });
  readonly spot: Spot | null = $derived(this.#picked ?? hardest(pickedGroup.current, analysis.shown?.missing ? analysis.own : analysis.shown));
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
  spot: Spot | null,
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
  if (alike > 1) return `No token is picked, so this is the first of ${integer(alike)} that are pushed equally hard.`;
  return "No token is picked, so this is the one pushed hardest here.";
}

/** Pushes closer than this are equally hard. */
const ALIKE = 1e-9;

/** The token of the group that the update pushes hardest: most can be said of it. The first that counts where none is pushed. */
function hardest(group: StepGroup | null, shown: Analysis | null): Spot | null {
  let most = 0;
  let found: Spot | null = null;
  for (const pass of group?.passes ?? []) {
    const { tokens } = pass;
    const push = shown?.passes.get(pass.key)?.push;
    for (let token = 0; token < (tokens?.n ?? 0); token++) {
      if (!(Number(tokens?.mask[token]) > 0)) continue;
      const size = Math.abs(push?.[token] ?? 0);
      if (size > most * (1 + ALIKE)) [most, found] = [size, { pass, token, alike: 1 }];
      else if (most > 0 && found && size >= most * (1 - ALIKE)) found.alike++;
      else found ??= { pass, token, alike: push ? 0 : NaN };
    }
  }
  return found;
}
