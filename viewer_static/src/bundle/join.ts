/**
 * Joining what was fixed at the rollout with what an update measured: rows of one response are contiguous and in
 * token order in both tables, so once joined by (rollout, row) they join by position. An update may train on a response
 * twice, in two micro-batches: those are two runs of rows, each joined with the same tokens of the rollout.
 */
import type { Column, Columns } from "./segments";
import type { Span } from "./types";

/** Half-open row range of one response in a token table; of one forward pass of it where the table tells them apart. */
export interface Run {
  rollout: number;
  row: number;
  /** -1 in a table that knows no micro-batches. */
  microBatch: number;
  start: number;
  end: number;
}

/** Splits the rows `[start, end)` of a token table into responses, and those into forward passes. */
export function runsOf(rollouts: Column, rows: Column, microBatches: Column | null, [start, end]: Span): Run[] {
  const runs: Run[] = [];
  let current: Run | null = null;
  for (let i = start; i < Math.min(end, rows.length); i++) {
    const rollout = Number(rollouts[i]);
    const row = Number(rows[i]);
    const microBatch = microBatches ? Number(microBatches[i]) : -1;
    if (current && current.rollout === rollout && current.row === row && current.microBatch === microBatch) {
      current.end = i + 1;
    } else {
      current = { rollout, row, microBatch, start: i, end: i + 1 };
      runs.push(current);
    }
  }
  return runs;
}

/** Rows `[start, end)` of a column as floats; a view where the column is one already. NaN where a value is missing. */
export function floats(column: Column, start: number, end: number): Float32Array {
  if (column instanceof Float32Array) return column.subarray(start, end);
  const out = new Float32Array(end - start);
  for (let i = start; i < end; i++) {
    const value = column[i];
    out[i - start] = value === null || value === undefined ? NaN : Number(value);
  }
  return out;
}

/** Tokens of one response: parallel arrays of length `n`, and channels by name. */
export interface ResponseTokens {
  n: number;
  ids: ArrayLike<number>;
  strings: ArrayLike<string>;
  /** 1 where the token counts in the loss. */
  mask: ArrayLike<number>;
  /** Why it does not; see `MASK_REASONS`. */
  reason: ArrayLike<number> | null;
  channels: Map<string, Float32Array>;
}

/** Columns that say what a row is, not what was measured there. */
const KEYS = new Set(["kind", "update", "rollout", "row", "micro_batch", "ids", "strings", "mask", "mask_reason"]);

/** Tokens of the response at `run` of a rollout table. */
export function rolloutTokens(table: Columns, run: Run): ResponseTokens {
  const slice = <T>(name: string): T[] | null => {
    const column = table.columns.get(name);
    return column ? (Array.prototype.slice.call(column, run.start, run.end) as T[]) : null;
  };
  const n = run.end - run.start;
  return {
    n,
    ids: slice<number>("ids") ?? new Array<number>(n).fill(NaN),
    strings: (slice<string | null>("strings") ?? new Array<null>(n).fill(null)).map((s) => s ?? ""),
    mask: (slice<number>("mask") ?? new Array<number>(n).fill(1)).map(Number),
    reason: slice<number>("mask_reason")?.map(Number) ?? null,
    channels: channelsOf(table, run),
  };
}

/** Float channels of a token table at `run`. */
export function channelsOf(table: Columns, run: Run): Map<string, Float32Array> {
  const channels = new Map<string, Float32Array>();
  for (const [name, column] of table.columns) {
    if (!KEYS.has(name)) channels.set(name, floats(column, run.start, run.end));
  }
  return channels;
}

/**
 * A response's tokens with what an update measured there added. Aliases stand for columns that are not stored because
 * they equal another by construction.
 *
 * @throws where the two tables do not hold the same number of tokens: they would join wrongly.
 */
export function joinTokens(
  rollout: ResponseTokens,
  update: ReadonlyMap<string, Float32Array> | null,
  aliases: Readonly<Record<string, string>>,
): ResponseTokens {
  const channels = new Map(rollout.channels);
  for (const [name, values] of update ?? []) {
    if (values.length !== rollout.n) {
      throw new Error(`a response has ${rollout.n} tokens in the rollout and ${values.length} in the update`);
    }
    channels.set(name, values);
  }
  for (const [name, of] of Object.entries(aliases)) {
    const values = channels.get(of);
    if (values && !channels.has(name)) channels.set(name, values);
  }
  return { ...rollout, channels };
}
