/** Aggregation: what share of the loss a token is. Weights sum over the tokens that count; 0 where none counts. */
import { rowSums, type Prepared } from "../prepared";
import { over, scaled, sum, timesRows } from "../numbers";
import type { Table } from "./types";

/**
 * What a micro-batch counts: `counted`, or where only a part of it is there what is known of the whole.
 *
 * A mask or filter that leaves `counted` of the part's `there` is taken to leave as large a share of the whole.
 */
function ofMicroBatch(known: number | null, counted: number, there: number): number {
  return known === null ? counted : (known * counted) / Math.max(there, 1);
}

/** B: whether a response has a token that counts. */
function any(counted: Float64Array, T: number): Uint8Array {
  const found = new Uint8Array(counted.length / T);
  for (let b = 0, i = 0; b < found.length; b++) {
    for (const end = i + T; i < end; i++) if (counted[i] !== 0) found[b] = 1;
  }
  return found;
}

/** Responses a mean over responses divides by, in the whole update. */
function rowsOf(batch: Prepared, counted: Float64Array, rows: string, span = "update"): number {
  const given = batch.normalisers;
  if (given.rows !== null && span === "update") return Math.max(given.rows, 1);
  let own: number;
  if (rows === "all" || (given.microBatchRows !== null && given.microBatchCountedRows === null)) {
    own = ofMicroBatch(given.microBatchRows, sum(batch.often), batch.B);
  } else {
    let there = 0;
    any(counted, batch.T).forEach((is, b) => (there += is * batch.often[b]!));
    own = ofMicroBatch(given.microBatchCountedRows, there, sum(any(batch.mask, batch.T)));
  }
  return Math.max(own, 1) * given.accumulationSteps;
}

/** B: tokens of a response that count, at least 1: of one, however often a filter repeats it. */
function lengths(batch: Prepared, counted: Float64Array): Float64Array {
  return rowSums(counted, batch.T).map((total, b) => Math.max(batch.often[b]! > 0 ? total / batch.often[b]! : 0, 1));
}

/** Each token divided by its response's length, then by a number. */
function overLengths(batch: Prepared, counted: Float64Array, divisor: number): Float64Array {
  const share = lengths(batch, counted).map((length) => 1 / length / divisor);
  return timesRows(counted, share, batch.T);
}

export const AGGREGATION = {
  /** Mean over a response's tokens, then mean over responses: of the update, or of the micro-batch alone. */
  sequence_mean_token_mean(batch: Prepared, counted, { rows, span }: { rows: string; span: string }) {
    return overLengths(batch, counted, rowsOf(batch, counted, rows, span));
  },

  /** Sum over a response's tokens, then mean over responses. */
  sequence_mean_token_sum(batch: Prepared, counted, { rows }: { rows: string }) {
    return over(counted, rowsOf(batch, counted, rows));
  },

  /** Sum over a response's tokens divided by one constant length, then mean over responses. */
  sequence_mean_constant_length(
    batch: Prepared,
    counted,
    { rows, length }: { rows: string; length: number | null },
  ) {
    const divisor = rowsOf(batch, counted, rows) * (length || batch.normalisers.length || batch.T);
    return over(counted, divisor);
  },

  /** Mean over all tokens: of the update, or of the micro-batch alone. */
  token_mean(batch: Prepared, counted, { span }: { span: string }) {
    const given = batch.normalisers;
    const own = ofMicroBatch(given.microBatchTokens, sum(counted), sum(batch.mask));
    const ofUpdate = span === "update" ? given.tokens : null;
    const tokens = Math.max(ofUpdate ?? Math.max(own, 1) * given.accumulationSteps, 1e-300);
    return over(counted, tokens);
  },

  /** Mean over all tokens of a prompt's responses, then mean over prompts. */
  group_token_mean(batch: Prepared, counted) {
    const { groups, members, normalisers, T } = batch;
    const tokens = new Float64Array(members.length);
    rowSums(counted, T).forEach((total, b) => (tokens[groups[b]!]! += total));
    const live = [any(counted, T), any(batch.mask, T)].map((is) => new Set(groups.filter((_, b) => is[b])).size);
    const own = Math.max(ofMicroBatch(normalisers.microBatchGroups, live[0]!, live[1]!), 1);
    const share = groups.map((group) => 1 / Math.max(tokens[group]!, 1) / own / normalisers.accumulationSteps);
    return timesRows(counted, share, T);
  },

  /** Sum over all tokens of the update, divided by a constant where one is given. */
  token_sum(batch: Prepared, counted, { length }: { length: number | null }) {
    // Ranks average their gradients: each takes its own sum times their number, so that the sum is what remains.
    return scaled(counted, batch.normalisers.dataParallelSize / (length || 1));
  },

  /** Mean over a response's tokens, summed over responses. */
  sequence_sum_token_mean(batch: Prepared, counted) {
    return overLengths(batch, counted, batch.normalisers.accumulationSteps);
  },
} satisfies Table<[batch: Prepared, counted: Float64Array], Float64Array>;
