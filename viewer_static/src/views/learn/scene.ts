/** What a lesson speaks of: one update, the group that tells most, a good and a bad response, and one token. */
import type { Analysis, PassResult } from "../../analysis/types";
import type { Pass, Step, StepGroup, StepResponse } from "../../bundle/step";
import type { Attempt, Manifest, UpdateMetrics } from "../../bundle/types";
import type { AlgorithmSpec } from "../../objective/types";
import { isSpecial } from "../../text";

/** What the person has picked; `null`s where the lesson chooses. */
export interface Picked {
  group: string | null;
  pass: string | null;
  token: number | null;
}

/** The same token of the same response, at the next update that trained on it. */
export interface After {
  update: number;
  logProb: number;
}

export interface Scene {
  step: Step;
  manifest: Manifest;
  attempt: Attempt | null;
  /** Of training, in order. */
  metrics: readonly UpdateMetrics[];
  /** Of the update itself. */
  own: ReadonlyMap<string, number>;
  spec: AlgorithmSpec | null;
  analysis: Analysis | null;
  group: StepGroup;
  best: StepResponse;
  worst: StepResponse;
  /** The pass the token is of, and what the run's algorithm makes of it; `null` where no tokens were captured. */
  pass: Pass | null;
  result: PassResult | null;
  /** Which token of the pass; -1 where there is none. */
  token: number;
  after: After | null;
}

export interface SceneInput {
  step: Step;
  manifest: Manifest;
  metrics: readonly UpdateMetrics[];
  spec: AlgorithmSpec | null;
  analysis: Analysis | null;
  picked: Picked;
  after?: After | null;
}

export function sceneOf({ step, manifest, metrics, spec, analysis, picked, after = null }: SceneInput): Scene | null {
  const group = step.groups.find((g) => g.key === picked.group) ?? tellingGroup(step);
  const [best] = group?.responses ?? [];
  const worst = group?.responses.findLast((r) => !Number.isNaN(r.reward)) ?? group?.responses.at(-1);
  if (!group || !best || !worst) return null;
  const known = analysis && !analysis.missing ? analysis : null;
  const { pass, token } = pickedToken(group, picked) ?? tellingToken(group, known) ?? { pass: null, token: -1 };
  return {
    step, manifest, metrics, spec, analysis, group, best, worst, pass, token, after,
    attempt: manifest.attempts.find((a) => a.attempt === step.update.attempt) ?? null,
    own: metrics.find((m) => m.update === step.update.update)?.values ?? new Map(),
    result: (pass && known?.passes.get(pass.key)) ?? null,
  };
}

/** The group of the update in which rewards differ most, of those whose tokens are there. */
export function tellingGroup(step: Step): StepGroup | null {
  const worth = (g: StepGroup) => (g.inUpdate > 0 ? 4 : 0) + (g.kept ? 2 : 0) + (g.flat ? 0 : 1);
  let found: StepGroup | null = null;
  for (const group of step.groups) {
    const better = !found || worth(group) > worth(found);
    if (better || (found && worth(group) === worth(found) && group.std > found.std)) found = group;
  }
  return found;
}

function pickedToken(group: StepGroup, { pass: key, token }: Picked): { pass: Pass; token: number } | null {
  const pass = group.passes.find((p) => p.key === key);
  return pass?.tokens && token !== null && token < pass.tokens.n ? { pass, token } : null;
}

/**
 * A token of a group that the update pushes hardest; one that can be read where there is one. Of the best response that
 * the update trains on and pushes: a story of something that did well is the easier one.
 */
export function tellingToken(group: StepGroup, analysis: Analysis | null): { pass: Pass; token: number } | null {
  const pushed = (pass: Pass) => analysis?.passes.get(pass.key)?.push.some((push) => push !== 0) ?? false;
  const good = group.passes.find((pass) => pass.measured && pushed(pass));
  return tellingOf(good ? [good] : group.passes, group, analysis);
}

function tellingOf(passes: readonly Pass[], group: StepGroup, analysis: Analysis | null): { pass: Pass; token: number } | null {
  let found: { pass: Pass; token: number } | null = null;
  let [best, most] = [-1, -1];
  for (const pass of passes) {
    const { tokens } = pass;
    if (!tokens) continue;
    const push = analysis?.passes.get(pass.key)?.push;
    for (let token = 0; token < tokens.n; token++) {
      const text = tokens.strings[token] ?? "";
      const read = text.trim() && !isSpecial(text);
      const counts = tokens.mask[token] && (pass.measured || !group.inUpdate);
      const rank = (counts ? 2 : 0) + (read ? 1 : 0);
      const size = Math.abs(push?.[token] ?? 0) || 0;
      if (rank > best || (rank === best && size > most)) {
        [best, most] = [rank, size];
        found = { pass, token };
      }
    }
  }
  return found;
}

/** The value of a channel at the scene's token; NaN where there is none. */
export function at(scene: Scene, channel: string): number {
  return scene.pass?.tokens?.channels.get(channel)?.[scene.token] ?? NaN;
}

/** The advantage the token was trained with. */
export function trainedWith(scene: Scene): number {
  const { result, pass, token } = scene;
  const computed = result?.advantages[token];
  if (computed !== undefined && !Number.isNaN(computed)) return computed;
  const own = at(scene, "advantages");
  return Number.isNaN(own) ? (pass?.response.advantage ?? NaN) : own;
}

/** Which response of its group, as they are shown, from 1. */
export function nth(group: StepGroup, response: StepResponse): number {
  return group.responses.indexOf(response) + 1;
}
