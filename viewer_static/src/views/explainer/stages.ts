/** An advantage step by step, by the engine itself: the reward as shaped, then compared, scaled and modulated. */
import { isTruncated, maskOf, OF_RESPONSE, padded, rewardComponents } from "../../analysis/batches";
import { onlySlots } from "../../analysis/plan";
import type { StepGroup, StepResponse } from "../../bundle/step";
import { advantagesOf, type AlgorithmSpec, type Batch, describePart, INPUTS, type InputArray, inputs, makeBatch, type PartUse } from "../../objective";

/** Values after each part of a slot, per token of a response; `null` where they cannot be computed from one group. */
export interface Stages {
  /** The rewards of the group as they are compared, by response key. */
  reward: ReadonlyMap<string, number> | null;
  baseline: ReadonlyMap<string, Float64Array> | null;
  /** One entry a use of the slot. */
  scale: readonly (ReadonlyMap<string, Float64Array> | null)[];
  modulation: readonly (ReadonlyMap<string, Float64Array> | null)[];
}

type ByResponse = ReadonlyMap<string, Float64Array>;

/**
 * The stages on one group. Parts that look beyond a group (over the batch, into history) end the chain with `null`: what is
 * shown then is the advantage itself alone. `weights`: of the reward functions, where they do not count the same.
 */
export function stagesOf(spec: AlgorithmSpec, group: StepGroup, weights: readonly number[] | null = null): Stages {
  const batch = groupBatch(spec, group, weights);
  const { parts } = spec;
  const run = (changes: Partial<AlgorithmSpec["parts"]>, ofPart: PartUse | null, slot: "baseline" | "scale" | "modulation"): ByResponse | null => {
    if (!batch || spec.mixture.length || (ofPart && !inGroup(slot, ofPart))) return null;
    try {
      const each = { ...spec, parts: { ...parts, filter: [], ...changes } };
      const { advantages } = advantagesOf(each, batch);
      return byResponse(group, advantages);
    } catch {
      return null;
    }
  };
  const plain = run({ baseline: { part: "none" }, scale: [], modulation: [] }, null, "baseline");
  const baseline = run({ scale: [], modulation: [] }, parts.baseline, "baseline");
  const scale: (ByResponse | null)[] = [];
  let broken = baseline === null;
  parts.scale.forEach((use, n) => {
    const values: ByResponse | null = broken ? null : run({ scale: parts.scale.slice(0, n + 1), modulation: [] }, use, "scale");
    broken ||= values === null;
    scale.push(values);
  });
  const modulation: (ByResponse | null)[] = [];
  parts.modulation.forEach((use, n) => {
    const values: ByResponse | null = broken ? null : run({ modulation: parts.modulation.slice(0, n + 1) }, use, "modulation");
    broken ||= values === null;
    modulation.push(values);
  });
  // The engine gives a response without a reward the advantage 0, which is not its reward.
  const shaped = (response: StepResponse) =>
    Number.isFinite(response.reward) ? (plain?.get(response.key)?.[Math.max(0, firstCounted(response))] ?? NaN) : NaN;
  const reward = plain && new Map(group.responses.map((response) => [response.key, shaped(response)]));
  return { reward: parts.reward.length ? reward : rewards(group), baseline, scale, modulation };
}

function rewards(group: StepGroup): ReadonlyMap<string, number> {
  return new Map(group.responses.map((response) => [response.key, response.reward]));
}

function firstCounted(response: StepResponse): number {
  return Array.prototype.findIndex.call(response.passes[0]?.tokens?.mask ?? [], (m: number) => m > 0);
}

function inGroup(slot: "baseline" | "scale" | "modulation", use: PartUse): boolean {
  const scope = describePart(slot, use.part)?.scope;
  return scope === "token" || scope === "response" || scope === "group";
}

function width(group: StepGroup): number {
  return Math.max(1, ...group.responses.map((response) => response.passes[0]?.tokens?.n ?? 0));
}

function byResponse(group: StepGroup, values: Float64Array): ByResponse {
  const T = width(group);
  // One value a response where all of its tokens have the same; else the 0 of a token that does not count is no value.
  const alike = values.length === group.responses.length;
  return new Map(group.responses.map((response, b) => [response.key, alike ? new Float64Array(T).fill(values[b] ?? NaN) : ofCounted(response, values.subarray(b * T, (b + 1) * T))]));
}

function ofCounted(response: StepResponse, values: Float64Array): Float64Array {
  const mask = response.passes[0]?.tokens?.mask ?? [];
  return values.map((value, t) => (Number(mask[t] ?? 0) > 0 ? value : NaN));
}

/** The group as a batch of its own, a row a response, in the group's order; `null` where its numbers make none. */
function groupBatch(spec: AlgorithmSpec, group: StepGroup, weights: readonly number[] | null): Batch | null {
  const { responses } = group;
  const passes = responses.flatMap((response) => response.passes.slice(0, 1));
  const [B, T] = [responses.length, width(group)];
  if (!B || passes.length !== B) return null;
  const arrays: Record<string, InputArray> = {
    mask: maskOf(passes, T),
    log_probs: new Float64Array(B * T),
    reward: responses.map((response) => response.reward),
    group: new Float64Array(B),
    truncated: passes.map((pass) => Number(isTruncated(pass))),
  };
  for (const name of inputs(onlySlots(spec, ["reward", "baseline", "scale", "modulation"]))) {
    const isCaptured = OF_RESPONSE.has(name) || passes.some((pass) => pass.tokens?.channels.has(name));
    if (isCaptured && !(name in arrays && name !== "log_probs") && INPUTS[name]?.axes.includes("BT")) arrays[name] = padded(name, passes, T);
  }
  const K = responses[0]?.components.length ?? 0;
  if (K && responses.every((response) => response.components.length === K)) {
    arrays.reward_components = rewardComponents(responses, K);
    if (weights?.length === K) arrays.reward_weights = weights;
  }
  try {
    return makeBatch({ B, T, arrays });
  } catch {
    return null;
  }
}
