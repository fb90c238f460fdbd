/**
 * A captured update as the engine takes it: one batch a forward pass of the trainer. The same as
 * `unipo_hooks.bundle.batches`: the same channels, at the same levels, divided by the same numbers.
 */
import type { Pass, Step, StepResponse } from "../bundle/step";
import type { Manifest, MicroBatchLine, Ranked, UpdateLine } from "../bundle/types";
import { type Batch, INPUTS, type InputArray, makeBatch, type Normalisers } from "../objective";

/** Float channels a bundle may hold that the engine knows, as `unipo_hooks.bundle.batches._CHANNELS`. */
export const CHANNELS: readonly string[] = [
  "old_log_probs", "ref_log_probs", "rollout_log_probs", "advantages", "values", "rewards", "is_weights", // at the rollout
  "log_probs", "entropies", "policy_mask", // at the update
].filter((name) => name in INPUTS);

/** Channels of which a trainer may have one value a response, and where a response keeps it. */
export const OF_RESPONSE: ReadonlyMap<string, (response: StepResponse) => number> = new Map([
  ["advantages", (response: StepResponse) => response.advantage],
  ["is_weights", (response: StepResponse) => response.isWeight],
]);

/** `mask_reason` in a response that was cut off. */
const TRUNCATED = 2;

export type Level = "token" | "response";

/** The stored responses of one forward pass: B of them, padded to T positions. Row b is of `passes[b]`. */
export interface MicroBatch {
  readonly rank: number;
  readonly number: number;
  readonly line: MicroBatchLine;
  readonly passes: readonly Pass[];
  readonly T: number;
  readonly arrays: Readonly<Record<string, InputArray>>;
  readonly normalisers: Partial<Normalisers>;
  readonly dataParallelSize: number;
  /** Whether every response of the forward pass is there: only then is the loss that of the trainer. */
  readonly whole: boolean;
  /** The trainer's loss without entropy bonus and router loss. */
  readonly loss: number | null;
}

/** The micro-batch as the engine's: with other advantages, and where responses take part more or less than once. */
export function batchOf(of: MicroBatch, advantages?: Float64Array, often?: Float64Array): Batch {
  const { passes, T, normalisers } = of;
  const arrays = advantages ? { ...of.arrays, advantages } : of.arrays;
  return makeBatch({ B: passes.length, T, arrays, normalisers, ...(often && { often }) });
}

/** The value of a channel at every token of a response: its own, else the response's; `null` where there is none. */
function valuesOf(name: string, { tokens, response }: Pass): { own: Float32Array | null; response: number } {
  return { own: tokens?.channels.get(name) ?? null, response: OF_RESPONSE.get(name)?.(response) ?? NaN };
}

/** Whether a token that counts has a finite value, and every one the response's: what was known, and what these say. */
function lookedAt(
  own: Float32Array,
  mask: ArrayLike<number>,
  response: number,
  finite: boolean,
  spread: boolean,
): [boolean, boolean] {
  for (let t = 0; t < own.length && (spread || !finite); t++) {
    if (!(mask[t]! > 0)) continue;
    const value = Number.isNaN(own[t]) ? response : own[t]!;
    if (Number.isFinite(value)) finite = true;
    // A trainer that gave one value a token has none for the response.
    if (value !== response && !(Number.isNaN(value) && Number.isNaN(response))) spread = false;
  }
  return [finite, spread];
}

/** Passes that were measured in the update and whose tokens were stored. */
function storedPasses(step: Step): Pass[] {
  return step.groups.filter((group) => group.kept).flatMap((group) => group.passes.filter((pass) => pass.measured));
}

/**
 * Channel → whether the update has a value of it for each token or for each response; one it has none of is not there.
 * Said once for the update: a forward pass in which no token counts has no values either.
 */
export function levelsOf(step: Step, manifest: Manifest): Map<string, Level> {
  const passes = storedPasses(step);
  const known = new Set([...manifest.channels, ...step.groups.flatMap((group) => Object.keys(group.aliases))]);
  for (const { tokens } of passes) for (const name of tokens?.channels.keys() ?? []) known.add(name);
  const levels = new Map<string, Level>([["ids", "token"]]);
  const counting = passes.filter(({ tokens }) => tokens && Array.prototype.some.call(tokens.mask, (each) => each > 0));
  for (const name of CHANNELS) {
    const ofResponse = OF_RESPONSE.get(name);
    let spread = ofResponse !== undefined && passes.some(({ response }) => !Number.isNaN(ofResponse(response)));
    if (spread) known.add(name);
    let finite = false;
    for (const pass of counting) {
      const { own, response } = valuesOf(name, pass);
      if (own) [finite, spread] = lookedAt(own, pass.tokens!.mask, response, finite, spread);
      else finite ||= Number.isFinite(response);
      if (finite && !spread) break;
    }
    if (counting.length ? finite : known.has(name)) levels.set(name, spread ? "response" : "token");
  }
  if (known.has("mask_reason") || passes.some((pass) => pass.tokens?.reason)) levels.set("truncated", "response");
  return levels.set("log_probs", "token");
}

/** How many reward functions gave the responses something. */
export function componentsOf(step: Step, manifest: Manifest): number {
  let most = 0;
  for (const group of step.groups) for (const each of group.responses) most = Math.max(most, each.components.length);
  return Math.min(most, manifest.reward_names.length);
}

/** A token channel of `passes`, padded with NaN to T positions. */
export function padded(name: string, passes: readonly Pass[], T: number): Float64Array {
  const out = new Float64Array(passes.length * T).fill(NaN);
  passes.forEach((pass, b) => {
    if (!pass.tokens) return;
    const { n } = pass.tokens;
    if (name === "ids") {
      out.set(pass.tokens.ids, b * T);
      return;
    }
    const { own, response } = valuesOf(name, pass);
    if (own) out.set(own, b * T);
    if (Number.isNaN(response)) return;
    for (let t = b * T; t < b * T + n; t++) if (Number.isNaN(out[t])) out[t] = response;
  });
  return out;
}

/** 1 where a token counts. */
export function maskOf(passes: readonly Pass[], T: number): Float64Array {
  const mask = new Float64Array(passes.length * T);
  passes.forEach(({ tokens }, b) => {
    for (let t = 0; t < (tokens?.n ?? 0); t++) mask[b * T + t] = tokens!.mask[t]! || 0;
  });
  return mask;
}

export function isTruncated({ tokens }: Pass): boolean {
  return tokens?.reason ? Array.prototype.includes.call(tokens.reason, TRUNCATED) : false;
}

/** B·K values, NaN where a reward function gave nothing. */
export function rewardComponents(responses: readonly StepResponse[], K: number): Float64Array {
  return Float64Array.from({ length: responses.length * K }, (_, i) => {
    return responses[Math.floor(i / K)]!.components[i % K] ?? NaN;
  });
}

/** The weight of each reward function in the update's attempt; `null` where all count the same. */
export function rewardWeights(manifest: Manifest, attempt: number, K: number): readonly number[] | null {
  const weights = manifest.attempts.find((each) => each.attempt === attempt)?.reward_weights ?? [];
  return K > 0 && weights.length === K ? weights : null;
}

/** The micro-batches of an update of which a response is stored, rank by rank in their order. */
export function microBatches(step: Step, manifest: Manifest, levels: ReadonlyMap<string, Level>): MicroBatch[] {
  const rows = new Map<string, Pass[]>();
  for (const pass of storedPasses(step)) {
    const key = `${rankOf(pass.response)}:${pass.measured!.microBatch}`;
    const known = rows.get(key);
    if (known) known.push(pass);
    else rows.set(key, [pass]);
  }
  const K = componentsOf(step, manifest);
  const weights = rewardWeights(manifest, step.update.attempt, K);
  const groupOf = new Map(step.groups.flatMap((group) => group.responses.map((each) => [each, group.group] as const)));
  const found: MicroBatch[] = [];
  for (const part of step.update.parts) {
    part.micro_batches.forEach((line, number) => {
      const passes = rows.get(`${part.rank}:${number}`);
      if (!passes) return;
      passes.sort((a, b) => a.response.row - b.response.row);
      found.push(microBatch(part, line, number, passes, levels, groupOf, K, weights));
    });
  }
  return found;
}

function microBatch(
  part: Ranked<UpdateLine>,
  line: MicroBatchLine,
  number: number,
  passes: Pass[],
  levels: ReadonlyMap<string, Level>,
  groupOf: ReadonlyMap<StepResponse, number>,
  K: number,
  weights: readonly number[] | null,
): MicroBatch {
  const responses = passes.map((pass) => pass.response);
  const T = Math.max(0, ...passes.map((pass) => Math.max(pass.response.length || 0, pass.tokens?.n ?? 0)));
  const arrays: Record<string, InputArray> = {};
  for (const [name, level] of levels) {
    if (name === "truncated") arrays[name] = passes.map((pass) => Number(isTruncated(pass)));
    else if (level === "token") arrays[name] = padded(name, passes, T);
    else arrays[name] = responses.map(OF_RESPONSE.get(name)!);
  }
  if (K > 0) arrays.reward_components = rewardComponents(responses, K);
  if (weights) arrays.reward_weights = weights;
  arrays.mask = maskOf(passes, T);
  arrays.reward = responses.map((response) => response.reward);
  arrays.group = responses.map((response) => groupOf.get(response)!);
  const whole = passes.length === line.rows;
  const ofPart = {
    microBatchTokens: line.tokens,
    microBatchRows: line.rows,
    microBatchCountedRows: line.counted_rows,
    microBatchGroups: line.groups,
  };
  return {
    rank: part.rank,
    number,
    line,
    passes,
    T,
    arrays,
    normalisers: {
      accumulationSteps: part.accumulation_steps,
      tokens: line.update_tokens,
      rows: line.update_rows,
      length: part.length_constant || line.width,
      dataParallelSize: part.data_parallel_size,
      ...(whole ? {} : ofPart),
    },
    dataParallelSize: part.data_parallel_size,
    whole,
    loss: policyLoss(line),
  };
}

/** The loss as the algorithm has it: the trainer's, its entropy bonus added back and its router loss taken off. */
function policyLoss(line: MicroBatchLine): number | null {
  if (line.loss === null) return null;
  return line.loss + (line.entropy_coef ?? 0) * (line.entropy_bonus ?? 0) - (line.router_loss ?? 0);
}

/** The rank that wrote a response: the first part of its key. */
export function rankOf(response: StepResponse): number {
  return Number.parseInt(response.key, 10);
}
