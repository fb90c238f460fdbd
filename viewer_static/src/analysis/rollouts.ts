/**
 * Advantages as an algorithm would have made them. A trainer compares the responses of a whole rollout and only then
 * deals them out to forward passes and updates: so are they computed here.
 */
import type { StepResponse } from "../bundle/step";
import { advantagesOf, type AlgorithmSpec, type InputArray, inputs, makeBatch } from "../objective";
import { isTruncated, type MicroBatch, OF_RESPONSE, padded, rewardComponents, rewardWeights } from "./batches";
import type { Captured, Sampled } from "./captured";

/** What an algorithm makes of the rewards of a response. */
export interface Judged {
  /** One value, or one a token. */
  readonly advantages: Float64Array;
  /** How often the response takes part. */
  readonly often: number;
}

export interface Judgement {
  readonly of: ReadonlyMap<StepResponse, Judged>;
  readonly notes: readonly string[];
}

/** `spec` looks at nothing but what `advantageSpec` left in it. Throws as the engine does. */
export function judge(captured: Captured, spec: AlgorithmSpec): Judgement {
  const of = new Map<StepResponse, Judged>();
  const notes = new Set<string>();
  const names = inputs(spec).filter((name) => captured.channels.has(name) || name === "reward_weights");
  for (const all of captured.rollouts.values()) {
    const rows = all.filter((each) => names.every((name) => captured.has(name, each)));
    if (!rows.length) continue;
    const B = rows.length;
    const T = Math.max(1, ...rows.map(({ response }) => response.length || 0));
    const batch = makeBatch({ B, T, arrays: rolloutArrays(captured, rows, T, names) });
    const found = advantagesOf(spec, batch);
    const width = found.advantages.length / B;
    rows.forEach(({ response }, b) => {
      of.set(response, {
        advantages: found.advantages.subarray(b * width, (b + 1) * width),
        often: found.often[b] ?? 1,
      });
    });
    for (const note of found.notes) notes.add(note);
  }
  return { of, notes: [...notes] };
}

function rolloutArrays(
  captured: Captured,
  rows: readonly Sampled[],
  T: number,
  names: readonly string[],
): Record<string, InputArray> {
  const responses = rows.map((each) => each.response);
  const passes = responses.map((response) => response.passes[0]!);
  const mask = new Float64Array(rows.length * T);
  rows.forEach(({ response }, b) => {
    const tokens = passes[b]!.tokens;
    for (let t = 0; t < (tokens?.n ?? 0); t++) mask[b * T + t] = tokens!.mask[t]! || 0;
    // Where tokens were not stored it is known how many count, not which.
    if (!tokens) mask.fill(1, b * T, b * T + Math.min(response.counted || 0, T));
  });
  const arrays: Record<string, InputArray> = {
    log_probs: new Float64Array(rows.length * T),
    mask,
    reward: responses.map((response) => response.reward),
    group: rows.map((each) => each.group.group),
  };
  const K = captured.components;
  for (const name of names) {
    const ofResponse = OF_RESPONSE.get(name);
    if (name in arrays && name !== "log_probs") continue;
    if (name === "reward_components") {
      arrays[name] = rewardComponents(responses, K);
    } else if (name === "reward_weights") {
      const weights = rewardWeights(captured.manifest, captured.step.update.attempt, K);
      if (weights) arrays[name] = weights;
    } else if (name === "truncated") {
      arrays[name] = passes.map((pass) => Number(isTruncated(pass)));
    } else if (ofResponse && captured.levels.get(name) === "response") {
      arrays[name] = responses.map(ofResponse);
    } else {
      arrays[name] = padded(name, passes, T);
    }
  }
  return arrays;
}

/** The advantages of a micro-batch's responses: one a response, or one a token where any of them has that. */
export function advantagesIn({ passes, T }: MicroBatch, { of }: Judgement): Float64Array {
  const B = passes.length;
  const perToken = passes.some((pass) => (of.get(pass.response)?.advantages.length ?? 1) > 1);
  const out = new Float64Array(perToken ? B * T : B);
  passes.forEach((pass, b) => {
    const own = of.get(pass.response)?.advantages;
    if (!own) return;
    if (!perToken) out[b] = own[0]!;
    else if (own.length > 1) out.set(own.subarray(0, T), b * T);
    else out.fill(own[0]!, b * T, (b + 1) * T);
  });
  return out;
}

/** How often each response of a micro-batch takes part; `undefined` where each does so once. */
export function oftenIn({ passes }: MicroBatch, { of }: Judgement): Float64Array | undefined {
  const often = Float64Array.from(passes, (pass) => of.get(pass.response)?.often ?? 1);
  return often.every((each) => each === 1) ? undefined : often;
}
