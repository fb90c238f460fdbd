/** What one update was made of: its prompt groups, their responses and tokens. The only place that joins tables. */
import { rolloutKey, type RunIndex } from "./index";
import { channelsOf, joinTokens, type ResponseTokens, type Run, rolloutTokens, runsOf } from "./join";
import { type Column, type Columns, segmentPath, type SegmentReader, type Table } from "./segments";
import { FileError } from "./source";
import type { CapturedUpdate, Ranked, RolloutLine, Span, UpdateLine } from "./types";

/** One forward pass of an update over a response. */
export interface Pass {
  /**
   * Unique in the update: key of the response for its first pass, `key.n` for the n-th one after it; `rollout:` before it
   * where the update trained on several rollouts.
   */
  key: string;
  response: StepResponse;
  /** Which of the response's passes, from 0. */
  number: number;
  /** `null` where the response is not in the update: then the tokens hold what the rollout fixed. */
  measured: { microBatch: number; logRatioSum: number; tokenKlSum: number } | null;
  tokens: ResponseTokens | null;
}

export interface StepResponse {
  /** `rank.row`, unique in its rollout. */
  key: string;
  row: number;
  length: number;
  counted: number;
  reward: number;
  /** One value a reward function, in the order of the manifest's `reward_names`; empty where none were stored. */
  components: number[];
  /** Where the trainer has one advantage a response. */
  advantage: number;
  /** Where the trainer has one sampler correction a response. */
  isWeight: number;
  /** What the trainer says of it beside its reward, by its own names; without those it says nothing of. */
  labels: ReadonlyMap<string, string | number>;
  /** Whether the update trained on it. */
  trained: boolean;
  /** At least one; more where the update trained on the response in several micro-batches. */
  passes: Pass[];
}

export interface StepGroup {
  /** `rollout.group`. */
  key: string;
  rollout: number;
  group: number;
  prompt: string;
  kept: boolean;
  /** How many groups of the rollout a kept one stands for. */
  weight: number;
  aliases: Readonly<Record<string, string>>;
  responses: StepResponse[];
  /** All passes of the responses, in their order. */
  passes: Pass[];
  /** The ranks that wrote its rollout. */
  ranks: number[];
  /** Responses of this group that are in the update. */
  inUpdate: number;
  mean: number;
  std: number;
  /** All rewards are known and equal: the group teaches nothing. */
  flat: boolean;
}

export interface Step {
  update: CapturedUpdate;
  groups: StepGroup[];
  /** Channels that hold at least one value for a response of this update. */
  channels: Set<string>;
}

/** What an update measured, by `rollout:row`: a response's passes in the order of their micro-batches. */
interface MeasuredRows {
  responses: Map<string, NonNullable<Pass["measured"]>[]>;
  /** By `rollout:row:microBatch`. */
  tokens: Map<string, { table: Columns; run: Run }>;
}

/** Reads everything of an update: at most four files a rank and rollout, most of them in the same segment. */
export async function loadStep(update: CapturedUpdate, index: RunIndex, segments: SegmentReader): Promise<Step> {
  const measured = new Map<number, MeasuredRows>();
  await Promise.all(
    update.parts.map(async (line) => {
      measured.set(line.rank, await readMeasured(line, segments));
    }),
  );
  const groups = new Map<string, StepGroup>();
  for (const number of update.rollouts) {
    const lines = index.rollouts.get(rolloutKey(update.kind, update.attempt, number)) ?? [];
    const ranks = lines.map((line) => line.rank);
    for (const line of lines) {
      for (const group of await readRollout(line, measured.get(line.rank) ?? null, segments)) {
        const known = groups.get(group.key);
        if (known) known.responses.push(...group.responses);
        else groups.set(group.key, { ...group, ranks });
      }
    }
  }
  const list = [...groups.values()].map(finishGroup);
  // Rows are numbered in their rollout.
  if (update.rollouts.length > 1) {
    for (const { rollout, passes } of list) for (const pass of passes) pass.key = `${rollout}:${pass.key}`;
  }
  list.sort((a, b) => Number(b.inUpdate > 0) - Number(a.inUpdate > 0) || a.rollout - b.rollout || a.group - b.group);
  const channels = new Set<string>();
  for (const group of list) {
    for (const { measured, tokens } of group.passes) {
      if (!measured || !tokens) continue;
      for (const [name, values] of tokens.channels) if (values.some((v) => !Number.isNaN(v))) channels.add(name);
    }
  }
  return { update, groups: list, channels };
}

async function table(segments: SegmentReader, segment: string, name: Table, span: Span): Promise<Columns | null> {
  if (span[1] <= span[0]) return null;
  const columns = await segments.read(segment, name);
  if (!columns) throw new FileError(segmentPath(segment, name), "it is missing");
  if (columns.rows < span[1]) {
    throw new FileError(columns.path, `it has ${columns.rows} rows, the index speaks of ${span[1]}`);
  }
  return columns;
}

function required(table: Columns, name: string): ArrayLike<unknown> {
  const column = table.columns.get(name);
  if (!column) throw new FileError(table.path, `it has no column “${name}”`);
  return column;
}

async function readMeasured(line: UpdateLine, segments: SegmentReader): Promise<MeasuredRows> {
  const [responses, tokens] = await Promise.all([
    table(segments, line.segment, "update_responses", line.responses),
    table(segments, line.segment, "update_tokens", line.tokens),
  ]);
  const out: MeasuredRows = { responses: new Map(), tokens: new Map() };
  if (responses) {
    const rollout = required(responses, "rollout");
    const row = required(responses, "row");
    const microBatch = required(responses, "micro_batch");
    const value = (name: string, i: number) => toNumber(responses.columns.get(name)?.[i]);
    for (let i = line.responses[0]; i < line.responses[1]; i++) {
      const key = `${Number(rollout[i])}:${Number(row[i])}`;
      const pass = {
        microBatch: Number(microBatch[i]),
        logRatioSum: value("log_ratio_sum", i),
        tokenKlSum: value("token_kl_sum", i),
      };
      const known = out.responses.get(key);
      if (known) known.push(pass);
      else out.responses.set(key, [pass]);
    }
    for (const passes of out.responses.values()) passes.sort((a, b) => a.microBatch - b.microBatch);
  }
  if (tokens) {
    const columns = [required(tokens, "rollout"), required(tokens, "row"), required(tokens, "micro_batch")] as const;
    for (const run of runsOf(...columns, line.tokens)) {
      out.tokens.set(`${run.rollout}:${run.row}:${run.microBatch}`, { table: tokens, run });
    }
  }
  return out;
}

async function readRollout(
  line: Ranked<RolloutLine>,
  measured: MeasuredRows | null,
  segments: SegmentReader,
): Promise<StepGroup[]> {
  const [responses, tokens] = await Promise.all([
    table(segments, line.segment, "responses", line.responses),
    table(segments, line.segment, "rollout_tokens", line.tokens),
  ]);
  if (!responses) return [];
  const runs = new Map<number, Run>();
  if (tokens) {
    const columns = [required(tokens, "rollout"), required(tokens, "row")] as const;
    for (const run of runsOf(...columns, null, line.tokens)) runs.set(run.row, run);
  }
  const row = required(responses, "row");
  const group = required(responses, "group");
  const prompt = responses.columns.get("prompt");
  const kept = responses.columns.get("kept");
  const named = [...responses.columns].filter(([name]) => name.startsWith(LABEL));
  const value = (name: string, i: number) => toNumber(responses.columns.get(name)?.[i]);
  const groups = new Map<number, StepGroup>();
  for (let i = line.responses[0]; i < line.responses[1]; i++) {
    const number = Number(group[i]);
    const key = `${line.rollout}:${Number(row[i])}`;
    const run = runs.get(Number(row[i]));
    let into = groups.get(number);
    if (!into) {
      into = {
        key: `${line.rollout}.${number}`,
        rollout: line.rollout,
        group: number,
        prompt: String(prompt?.[i] ?? ""),
        kept: kept ? Boolean(kept[i]) : true,
        weight: line.weight,
        aliases: line.aliases,
        responses: [],
        passes: [],
        ranks: [line.rank],
        inUpdate: 0,
        mean: NaN,
        std: NaN,
        flat: false,
      };
      groups.set(number, into);
    }
    const response: StepResponse = {
      key: `${line.rank}.${Number(row[i])}`,
      row: Number(row[i]),
      length: value("length", i),
      counted: value("counted", i),
      reward: value("reward", i),
      components: components(responses, i),
      advantage: value("advantages", i),
      isWeight: value("is_weights", i),
      labels: labels(named, i),
      trained: measured?.responses.has(key) ?? false,
      passes: [],
    };
    response.passes = (measured?.responses.get(key) ?? [null]).map((pass, number) => ({
      key: number ? `${response.key}.${number}` : response.key,
      response,
      number,
      measured: pass,
      tokens: tokens && run ? join(tokens, run, measured?.tokens.get(`${key}:${pass?.microBatch}`), line) : null,
    }));
    into.responses.push(response);
  }
  return [...groups.values()];
}

function join(
  table: Columns,
  run: Run,
  measured: { table: Columns; run: Run } | undefined,
  line: RolloutLine,
): ResponseTokens {
  const update = measured ? channelsOf(measured.table, measured.run) : null;
  try {
    return joinTokens(rolloutTokens(table, run), update, line.aliases);
  } catch (error) {
    throw new FileError(measured?.table.path ?? table.path, error instanceof Error ? error.message : String(error));
  }
}

function components(responses: Columns, i: number): number[] {
  const values: number[] = [];
  for (let n = 0; ; n++) {
    const column = responses.columns.get(`reward_components.${n}`);
    if (!column) return values;
    values.push(toNumber(column[i]));
  }
}

/** What the columns of what a trainer says of a response begin with. */
const LABEL = "labels.";

function labels(columns: readonly (readonly [string, Column])[], i: number): Map<string, string | number> {
  const found = new Map<string, string | number>();
  for (const [name, column] of columns) {
    const value = column[i];
    const label = typeof value === "string" ? value : toNumber(value);
    if (!Number.isNaN(label)) found.set(name.slice(LABEL.length), label);
  }
  return found;
}

function finishGroup(group: StepGroup): StepGroup {
  const rewards = group.responses.map((r) => r.reward).filter((r) => !Number.isNaN(r));
  const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
  const squares = rewards.reduce((a, b) => a + (b - mean) ** 2, 0);
  // Best first; a reward that is not known goes last.
  const responses = [...group.responses].sort((a, b) => order(b.reward) - order(a.reward) || a.row - b.row);
  return {
    ...group,
    responses,
    passes: responses.flatMap((r) => r.passes),
    inUpdate: responses.filter((r) => r.trained).length,
    mean,
    std: rewards.length > 1 ? Math.sqrt(squares / (rewards.length - 1)) : NaN,
    flat: rewards.length > 1 && rewards.length === group.responses.length && rewards.every((r) => r === rewards[0]),
  };
}

function order(value: number): number {
  return Number.isNaN(value) ? -Infinity : value;
}

function toNumber(value: unknown): number {
  return value === null || value === undefined ? NaN : Number(value);
}

/** That an update trained on a response, and how far it had moved by then. */
export interface Use {
  update: number;
  /** Over all its passes in the update: tokens that count, sum of their log-ratios and of their KL; NaN where unknown. */
  counted: number;
  logRatioSum: number;
  tokenKlSum: number;
}

export interface Trained {
  /** By `rollout:responseKey`, in the order of the updates. */
  uses: ReadonlyMap<string, readonly Use[]>;
  /** Whether every captured update on these rollouts was looked at. */
  whole: boolean;
}

/**
 * Which captured updates trained on each response of an update's rollouts, from the small response tables of those
 * updates. Without `all`, only from the files that the update itself was read from: nothing is fetched.
 */
export async function trainedIn(step: Step, index: RunIndex, segments: SegmentReader, all: boolean): Promise<Trained> {
  const { update } = step;
  const here = new Set(update.parts.map((line) => line.segment));
  const lines = index.updates[update.kind]
    .filter((u) => u.attempt === update.attempt && u.rollouts.some((r) => update.rollouts.includes(r)))
    .flatMap((u) => u.parts);
  const read = lines.filter((line) => all || here.has(line.segment));
  const uses = new Map<string, Use[]>();
  for (const line of read) {
    const rows = await table(segments, line.segment, "update_responses", line.responses);
    if (!rows) continue;
    const rollout = required(rows, "rollout");
    const row = required(rows, "row");
    const value = (name: string, i: number) => toNumber(rows.columns.get(name)?.[i]);
    for (let i = line.responses[0]; i < line.responses[1]; i++) {
      const key = `${Number(rollout[i])}:${line.rank}.${Number(row[i])}`;
      let known = uses.get(key);
      if (!known) uses.set(key, (known = []));
      let use = known.at(-1);
      if (use?.update !== line.update) {
        known.push((use = { update: line.update, counted: 0, logRatioSum: 0, tokenKlSum: 0 }));
      }
      use.counted += value("counted", i);
      use.logRatioSum += value("log_ratio_sum", i);
      use.tokenKlSum += value("token_kl_sum", i);
    }
  }
  return { uses, whole: read.length === lines.length };
}
