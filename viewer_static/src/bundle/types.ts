/**
 * The lines and files of a bundle, as `unipo_hooks.schema` defines them. Only what the viewer reads is named here:
 * unknown fields are ignored, and every field a reader can do without is optional.
 */

export type Kind = "train" | "eval";
export type Status = "running" | "finished" | "interrupted";
/** A half-open range of rows, `[start, end)`. */
export type Span = readonly [number, number];

export interface Attempt {
  attempt: number;
  /** When it started, as ISO 8601; empty where that is not known. */
  started: string;
  first_update: number;
  status: Status;
  /** Processes that trained together in it; `null` where as many as the manifest says. */
  ranks: number | null;
  /** The algorithm that ran, as JSON of the run: nothing of it is checked here. */
  algorithm: unknown;
  /** What of the trainer's settings is not understood, and why a loss could not be recomputed. */
  algorithm_notes: string[];
  /** Weight of each reward function; empty where all count the same. */
  reward_weights: number[];
}

export interface Manifest {
  version: string;
  /** Tells the files of one run from those of another. */
  created: string;
  status: Status;
  header: {
    task: string;
    dataset: string;
    algorithm: string;
    model_name: string;
    totalSteps: number | null;
    /** Responses to a prompt, in training; `null` where that is not known. */
    group_size: number | null;
  };
  trainer: { library: string; version: string };
  ranks: number;
  channels: string[];
  reward_names: string[];
  attempts: Attempt[];
  /** Algorithms the user registered, as JSON of the run. */
  algorithms: unknown[];
  lost: { rollouts: number; updates: number; evaluations: number; tokens: number; reason: string | null };
}

export interface RolloutLine {
  entry: "rollout";
  kind: Kind;
  attempt: number;
  rollout: number;
  step: number;
  segment: string;
  responses: Span;
  tokens: Span;
  groups: number;
  kept: number[] | null;
  weight: number;
  aliases: Record<string, string>;
}

export interface UpdateLine {
  entry: "update";
  kind: Kind;
  attempt: number;
  update: number;
  step: number;
  rollouts: number[];
  is_first_step_after_rollout_phase: boolean;
  segment: string;
  responses: Span;
  tokens: Span;
  /** When it was written, in seconds since 1970. */
  time: number;
  accumulation_steps: number;
  data_parallel_size: number;
  length_constant: number | null;
  micro_batches: MicroBatchLine[];
}

/** What the loss of one forward pass was divided by, and what it came to; `null` where that is not known. */
export interface MicroBatchLine {
  rollout: number;
  rows: number;
  tokens: number;
  loss: number | null;
  entropy_coef: number | null;
  entropy_bonus: number | null;
  router_loss: number | null;
  /** Type the trainer computed in: how far rounding reaches. */
  dtype: string;
  update_tokens: number | null;
  update_rows: number | null;
  width: number | null;
  counted_rows: number | null;
  groups: number | null;
  loss_gap: number | null;
  loss_tolerance: number | null;
  /** Data-parallel rank that made the pass, where one index holds those of several; `null`: the index's own rank. */
  data_parallel_rank: number | null;
}

/** `[sum, count, sum of squares]` of a metric on one rank. */
export type Sums = readonly [number, number, number];

export interface MetricsLine {
  entry: "metrics";
  kind: Kind;
  attempt: number;
  update: number;
  step: number;
  rollouts: number[];
  is_first_step_after_rollout_phase: boolean;
  captured: boolean;
  sums: Record<string, Sums>;
  scalars: Record<string, number | null>;
}

export interface LogLine {
  entry: "log";
  kind: Kind;
  attempt: number;
  update: number;
  step: number;
  scalars: Record<string, number | null>;
}

/** An index line and the rank that wrote it. */
export type Ranked<T> = T & { rank: number };

/** A captured update, over all ranks. */
export interface CapturedUpdate {
  kind: Kind;
  attempt: number;
  update: number;
  step: number;
  rollouts: number[];
  first: boolean;
  parts: Ranked<UpdateLine>[];
}

/** The metrics of an update, captured or not, over all ranks: means, and scalars as the trainer logged them. */
export interface UpdateMetrics {
  kind: Kind;
  update: number;
  step: number;
  rollouts: number[];
  first: boolean;
  /** Whether the writer captures it; its tokens are written in batches, so they may come later. */
  captured: boolean;
  values: Map<string, number>;
}
