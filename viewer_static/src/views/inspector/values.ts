/** Values of a channel for the tokens of a pass: stored, derived, or what the algorithm that is shown makes of them. */
import { hardest } from "../../analysis/hardest";
import { type Analysis, MEAN_ROUNDING, type PassResult } from "../../analysis/types";
import type { Pass, StepGroup } from "../../bundle/step";
import { valuesOf } from "../../channels";

export type Values = ArrayLike<number>;

/** What the analysis says of a pass; `null` where it could not be computed. */
export function resultOf(analysis: Analysis | null, pass: Pass): PassResult | null {
  const result = analysis?.passes.get(pass.key);
  return result?.pass === pass ? result : null;
}

/** Values of a channel, one a token; a value a response has as a whole is that of each of its tokens. */
export function channelValues(pass: Pass, name: string, analysis: Analysis | null = null): Values | null {
  const { response, tokens } = pass;
  if (!tokens) return null;
  if (name === "push" || name === "token_objective") {
    const result = resultOf(analysis, pass);
    if (result) return name === "push" ? result.push : result.tokenObjective;
  }
  // Under a what-if, the advantages are its own.
  if (name === "advantages" && analysis && !analysis.own) {
    const its = resultOf(analysis, pass)?.advantages;
    if (its) return its;
  }
  const values = valuesOf(tokens, name);
  if (values) return values;
  const whole = name === "advantages" ? response.advantage : name === "is_weights" ? response.isWeight : NaN;
  return Number.isNaN(whole) ? null : new Float32Array(tokens.n).fill(whole);
}

const means = new WeakMap<object, Float64Array>();

/** Values less the mean of those that count: how a token stands out in its response. NaN throughout where none counts. */
export function relative(values: Values, mask: Values): Float64Array {
  const known = means.get(values);
  if (known) return known;
  let sum = 0;
  let n = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    if (!mask[i] || !Number.isFinite(value)) continue;
    sum += value;
    n++;
  }
  const out = Float64Array.from(values, (value) => value - sum / n);
  means.set(values, out);
  return out;
}

/** Values and mask of the passes given, where the channel is known: what scales and histograms are made of. */
export function samples(
  passes: readonly Pass[],
  of: (pass: Pass) => Values | null,
): { values: Values; mask: Values }[] {
  return passes.flatMap((pass) => {
    const values = of(pass);
    return values && pass.tokens ? [{ values, mask: pass.tokens.mask }] : [];
  });
}

/** The passes that set a group's scale: the update's own; where it has none here, all that is known. */
export function scalePasses(group: StepGroup): readonly Pass[] {
  return group.inUpdate ? group.passes.filter((pass) => pass.measured) : group.passes;
}

/** The advantage of a response: the what-if's where there is one; NaN where it is not known or differs by token. */
export function advantageOf(pass: Pass, analysis: Analysis | null): number {
  const stored = pass.response.advantage;
  if (!Number.isNaN(stored) && (!analysis || analysis.own)) return stored;
  const values = resultOf(analysis, pass)?.advantages;
  const mask = pass.tokens?.mask;
  if (!values || !mask) return stored;
  let one = NaN;
  for (let i = 0; i < values.length; i++) {
    if (!mask[i]) continue;
    const value = values[i] as number;
    if (Number.isNaN(one)) one = value;
    else if (Math.abs(value - one) > 1e-9) return NaN;
  }
  return one;
}

/** Where walking through a group starts: at the token pushed hardest; at the first one where none counts. */
export function startOf(passes: readonly Pass[], analysis: Analysis | null): { pass: string; token: number } | null {
  const found = hardest(passes, analysis);
  if (found) return { pass: found.pass.key, token: found.token };
  const first = passes.find((pass) => pass.tokens?.n);
  return first ? { pass: first.key, token: 0 } : null;
}

/**
 * Whether a group teaches nothing: every reward is the same, and no advantage says otherwise. Algorithms that compare
 * beyond the group have advantages even there.
 */
export function noSignal(group: StepGroup, analysis: Analysis | null): boolean {
  return (
    group.flat &&
    group.passes.every((pass) => {
      const values = channelValues(pass, "advantages", analysis) ?? resultOf(analysis, pass)?.advantages ?? [];
      return Array.prototype.every.call(values, (a: number, i: number) => !pass.tokens?.mask[i] || !(Math.abs(a) >= MEAN_ROUNDING));
    })
  );
}

/** Channels that say what is to be learned: left unpainted in a group that teaches nothing. */
export const LESSONS: ReadonlySet<string> = new Set(["push", "token_objective", "advantages"]);
