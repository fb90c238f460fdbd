/**
 * From the lines of a bundle to what a person can open: ranks merged, entries that a later attempt did again hidden.
 */
import { supersededBy } from "./attempts";
import { logLine, metricsLine, parseLines, rolloutLine, updateLine } from "./lines";
import type {
  Attempt,
  CapturedUpdate,
  Kind,
  LogLine,
  MetricsLine,
  Ranked,
  RolloutLine,
  Sums,
  UpdateLine,
  UpdateMetrics,
} from "./types";

export interface RunIndex {
  /** Rollouts by `rolloutKey`, a line a rank. */
  rollouts: Map<string, Ranked<RolloutLine>[]>;
  /** Captured updates in order, training ones and evaluations apart. */
  updates: Record<Kind, CapturedUpdate[]>;
  /** The metrics of every update, captured or not, in order. */
  metrics: Record<Kind, UpdateMetrics[]>;
  /** Updates of training that are hidden because a later attempt did them again, captured or not. */
  superseded: number;
  /** When the newest line was written, in seconds since 1970; 0 without any. */
  newest: number;
  /** Lines that could not be read, in words. */
  faults: string[];
}

/** Texts of the line files, one a rank: `index[rank]` is `index.r{rank}.jsonl`. */
export interface LineFiles {
  index: readonly string[];
  metrics: readonly string[];
}

export const EMPTY: RunIndex = {
  rollouts: new Map(),
  updates: { train: [], eval: [] },
  metrics: { train: [], eval: [] },
  superseded: 0,
  newest: 0,
  faults: [],
};

/** Metrics that are unbiased standard deviations, taken from the sums of another: `unipo_hooks.channels.DEVIATIONS`. */
const DEVIATIONS: Readonly<Record<string, string>> = { reward_std: "reward", advantage_std: "advantage_mean" };

/** Key of a rollout: a resumed run may sample again under the same number. */
export function rolloutKey(kind: Kind, attempt: number, rollout: number): string {
  return `${kind}:${attempt}:${rollout}`;
}

export function buildIndex(files: LineFiles, attempts: readonly Attempt[]): RunIndex {
  const faults: string[] = [];
  let newest = 0;
  const metrics: MetricsLine[] = [];
  const logs: LogLine[] = [];
  files.metrics.forEach((text, rank) => {
    for (const raw of parseLines(text, `metrics.r${rank}.jsonl`, faults)) {
      if (typeof raw.time === "number") newest = Math.max(newest, raw.time);
      if (raw.entry === "metrics") metrics.push(metricsLine(raw));
      else if (raw.entry === "log") logs.push(logLine(raw));
    }
  });
  const rollouts = new Map<string, Ranked<RolloutLine>[]>();
  const updates: Ranked<UpdateLine>[] = [];
  files.index.forEach((text, rank) => {
    for (const raw of parseLines(text, `index.r${rank}.jsonl`, faults)) {
      if (typeof raw.time === "number") newest = Math.max(newest, raw.time);
      if (raw.entry === "rollout") {
        const line = { ...rolloutLine(raw), rank };
        const key = rolloutKey(line.kind, line.attempt, line.rollout);
        const known = rollouts.get(key);
        if (known) known.push(line);
        else rollouts.set(key, [line]);
      } else if (raw.entry === "update") {
        updates.push({ ...updateLine(raw), rank });
      }
    }
  });
  const superseded = supersededBy(attempts, metrics);
  const visible = updates.filter((line) => !superseded(line));
  const shown = metrics.filter((line) => !superseded(line));
  const logged = logs.filter((line) => !superseded(line));
  return {
    rollouts,
    updates: { train: mergeUpdates(visible, "train"), eval: mergeUpdates(visible, "eval") },
    metrics: { train: mergeMetrics(shown, logged, "train"), eval: mergeMetrics(shown, logged, "eval") },
    superseded: new Set(
      [...updates, ...metrics].filter((x) => x.kind === "train" && superseded(x)).map((x) => `${x.attempt}:${x.update}`),
    ).size,
    newest,
    faults,
  };
}

function mergeUpdates(lines: readonly Ranked<UpdateLine>[], kind: Kind): CapturedUpdate[] {
  const updates = new Map<number, CapturedUpdate>();
  for (const line of lines) {
    if (line.kind !== kind) continue;
    const known = updates.get(line.update);
    if (known && known.attempt > line.attempt) continue;
    if (known && known.attempt === line.attempt) {
      known.parts.push(line);
      known.rollouts = [...new Set([...known.rollouts, ...line.rollouts])];
      continue;
    }
    updates.set(line.update, {
      kind,
      attempt: line.attempt,
      update: line.update,
      step: line.step,
      rollouts: [...line.rollouts],
      first: line.is_first_step_after_rollout_phase,
      parts: [line],
    });
  }
  return [...updates.values()].sort((a, b) => a.update - b.update);
}

/** Means and spreads from the sums of all ranks; what the trainer itself logged counts where a metric has no sums. */
function mergeMetrics(lines: readonly MetricsLine[], logs: readonly LogLine[], kind: Kind): UpdateMetrics[] {
  const merged = new Map<
    number,
    { line: MetricsLine; captured: boolean; sums: Map<string, Sums>; scalars: Map<string, number> }
  >();
  for (const line of lines) {
    if (line.kind !== kind) continue;
    let into = merged.get(line.update);
    if (!into || into.line.attempt < line.attempt) {
      into = { line, captured: false, sums: new Map(), scalars: new Map() };
      merged.set(line.update, into);
    }
    into.captured ||= line.captured;
    for (const [name, [sum, count, squares]] of Object.entries(line.sums)) {
      const before = into.sums.get(name) ?? [0, 0, 0];
      into.sums.set(name, [before[0] + sum, before[1] + count, before[2] + squares]);
    }
    keepNumbers(into.scalars, line.scalars);
  }
  for (const line of logs) {
    const into = line.kind === kind ? merged.get(line.update) : undefined;
    if (into && into.line.attempt === line.attempt) keepNumbers(into.scalars, line.scalars);
  }
  return [...merged.values()]
    .map(({ line, captured, sums, scalars }) => {
      const values = new Map(scalars);
      for (const [name, [sum, count]] of sums) if (count > 0) values.set(name, sum / count);
      for (const [name, of] of Object.entries(DEVIATIONS)) {
        const [sum, count, squares] = sums.get(of) ?? [0, 0, 0];
        if (count > 1) values.set(name, Math.sqrt(Math.max(0, (squares - (sum * sum) / count) / (count - 1))));
      }
      return {
        kind,
        update: line.update,
        step: line.step,
        rollouts: line.rollouts,
        first: line.is_first_step_after_rollout_phase,
        captured,
        values,
      };
    })
    .sort((a, b) => a.update - b.update);
}

function keepNumbers(into: Map<string, number>, from: Record<string, number | null>): void {
  for (const [name, value] of Object.entries(from)) if (typeof value === "number") into.set(name, value);
}
