/** What the Explainer speaks of: the open token, or a telling one, in the algorithm shown and in the one beside it. */
import type { Analysis } from "../../analysis";
import type { Pass, StepGroup } from "../../bundle/step";
import { type AlgorithmSpec, differences, type Difference } from "../../objective";
import { analysis } from "../../state/analysis.svelte";
import { pickedGroup } from "../../state/picked.svelte";
import { selection } from "../../state/selection.svelte";
import { cardsOf, type HeadingCards } from "./cards";
import type { Reading } from "./reading";
import { type Stages, stagesOf } from "./stages";

interface Spot {
  pass: Pass;
  token: number;
}

class Explained {
  /** The algorithm whose cards are shown: the what-if's where there is one. */
  readonly spec: AlgorithmSpec | null = $derived(analysis.whatSpec ?? analysis.ownSpec);
  readonly versus: AlgorithmSpec | null = $derived(analysis.versusSpec?.display ? null : analysis.versusSpec);

  readonly #picked: Spot | null = $derived.by(() => {
    const { pass: key, token } = selection;
    const pass = pickedGroup.current?.passes.find((each) => each.key === key);
    return pass?.tokens && token !== null && token < pass.tokens.n ? { pass, token } : null;
  });
  readonly spot: Spot | null = $derived(this.#picked ?? hardest(pickedGroup.current, analysis.shown?.missing ? analysis.own : analysis.shown));
  /** Nobody picked the token: it is the one that is pushed hardest. */
  readonly preview: boolean = $derived(!this.#picked && this.spot !== null);

  // Of a group, not of a token: another token of it is shown without computing them again.
  readonly #stagesA: Stages | null = $derived(stages(this.spec, pickedGroup.current));
  readonly #stagesB: Stages | null = $derived(stages(this.versus, pickedGroup.current));
  readonly a: Reading | null = $derived(reading(this.spec, analysis.shown, pickedGroup.current, this.spot, this.#stagesA));
  readonly b: Reading | null = $derived(reading(this.versus, analysis.versus, pickedGroup.current, this.spot, this.#stagesB));

  readonly cards: readonly HeadingCards[] = $derived(this.spec && !this.spec.display ? cardsOf(this.spec, this.a) : []);
  readonly others: readonly HeadingCards[] = $derived(this.versus ? cardsOf(this.versus, this.b) : []);
  readonly differences: readonly Difference[] = $derived(this.spec && this.versus ? differences(this.spec, this.versus) : []);
}

export const explained = new Explained();

function stages(spec: AlgorithmSpec | null, group: StepGroup | null): Stages | null {
  return spec && !spec.display && group ? stagesOf(spec, group) : null;
}

function reading(
  spec: AlgorithmSpec | null,
  of: Analysis | null,
  group: StepGroup | null,
  spot: Spot | null,
  stages: Stages | null,
): Reading | null {
  if (!spec || !group || !spot || !stages) return null;
  const { pass, token } = spot;
  return { spec, group, response: pass.response, pass, token, result: of?.passes.get(pass.key) ?? null, stages };
}

/** The token of the group that the update pushes hardest: most can be said of it. */
function hardest(group: StepGroup | null, shown: Analysis | null): Spot | null {
  let [most, found]: [number, Spot | null] = [-1, null];
  for (const pass of group?.passes ?? []) {
    if (!pass.tokens) continue;
    const push = shown?.passes.get(pass.key)?.push;
    if (!push) continue;
    push.forEach((value, token) => {
      if (Number(pass.tokens?.mask[token]) > 0 && Math.abs(value) > most) [most, found] = [Math.abs(value), { pass, token }];
    });
  }
  return found;
}
