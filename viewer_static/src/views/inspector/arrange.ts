/** In which order, and which of a group's responses are shown. */
import type { Analysis, Changed } from "../../analysis/types";
import type { StepGroup, StepResponse } from "../../bundle/step";
import type { Filter, Sort } from "../../state/hash";
import { advantageOf, resultOf } from "./values";

export const SORTS: readonly (readonly [Sort, string])[] = [
  ["reward", "best reward first"],
  ["order", "as in the rollout"],
  ["length", "longest first"],
  ["advantage", "by advantage"],
  ["push", "by total push"],
  ["clipped", "most clipped first"],
];

export const FILTERS: readonly (readonly [Filter, string])[] = [
  ["all", "all responses"],
  ["trained", "trained on here"],
  ["clipped", "with clipped tokens"],
  ["positive", "A > 0"],
  ["negative", "A < 0"],
  ["changed", "changed by the what-if"],
];

/** Sum of the push over a response, and the share of its tokens that are clipped; NaN where not known. */
export function totals(response: StepResponse, analysis: Analysis | null): { push: number; clipped: number } {
  let push = 0;
  let clipped = 0;
  let counted = 0;
  for (const pass of response.passes) {
    const result = resultOf(analysis, pass);
    if (!result || !pass.tokens) return { push: NaN, clipped: NaN };
    for (let i = 0; i < result.push.length; i++) {
      if (!pass.tokens.mask[i]) continue;
      push += result.push[i] as number;
      if (result.clipped[i]) clipped++;
      counted++;
    }
  }
  return { push, clipped: counted ? clipped / counted : 0 };
}

/** The responses that pass the filter, in order; what is not known goes last. */
export function arrange(
  group: StepGroup,
  sort: Sort,
  filter: Filter,
  analysis: Analysis | null,
  changed: ReadonlyMap<string, readonly Changed[]>,
): StepResponse[] {
  const advantage = (r: StepResponse) => (r.passes[0] ? advantageOf(r.passes[0], analysis) : r.advantage);
  const keep: Record<Filter, (r: StepResponse) => boolean> = {
    all: () => true,
    trained: (r) => r.trained,
    clipped: (r) => totals(r, analysis).clipped > 0,
    positive: (r) => advantage(r) > 0,
    negative: (r) => advantage(r) < 0,
    changed: (r) => r.passes.some((pass) => changed.get(pass.key)?.length),
  };
  const shown = group.responses.filter(keep[filter]);
  if (sort === "reward") return shown;
  const by: Record<Exclude<Sort, "reward">, (r: StepResponse) => number> = {
    order: (r) => -r.row,
    length: (r) => r.length,
    advantage,
    push: (r) => totals(r, analysis).push,
    clipped: (r) => totals(r, analysis).clipped,
  };
  const key = by[sort];
  const keys = new Map(shown.map((r) => [r, key(r)]));
  const value = (r: StepResponse) => {
    const of = keys.get(r) ?? NaN;
    return Number.isNaN(of) ? -Infinity : of;
  };
  // Infinities would come to NaN: compared, not subtracted.
  return shown.toSorted((a, b) => (value(a) === value(b) ? 0 : value(a) < value(b) ? 1 : -1));
}
