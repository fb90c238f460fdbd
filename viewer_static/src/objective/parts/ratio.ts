/** Ratio: how far the policy has moved, at which level, and the Jacobian that carries a gradient back to the tokens. */
import { rowSums, type Prepared } from "../prepared";
import { cappedExp, clip, minus, times } from "../numbers";
import { numbersOf } from "./places";
import { HIGH, LOW, Ratio, perToken, type Bounds, type Table } from "./types";

/** log π_θ − log of the named channel; 0 where a token does not count. */
export function logRatio(batch: Prepared, reference: string, of = "log_probs"): Float64Array {
  return minus(batch.get(of), batch.get(reference));
}

/** Whether a log-ratio is inside ±clamp: outside it is cut, and has no gradient. */
function inside(log: Float64Array, clamp: number): Float64Array {
  return log.map((value) => (Math.abs(value) <= clamp ? 1 : 0));
}

function same(d: Float64Array): Float64Array {
  return d;
}

/** Carries a gradient from a response to its tokens: Σ d over the response, divided by `size` (B), times `live`. */
function sharedBy(batch: Prepared, live: Float64Array, size: Float64Array | null): (d: Float64Array) => Float64Array {
  const { T } = batch;
  return (d) => {
    const sums = rowSums(d, T);
    const pulled = new Float64Array(d.length);
    for (let b = 0, i = 0; b < sums.length; b++) {
      const share = size === null ? sums[b]! : sums[b]! / size[b]!;
      for (const end = i + T; i < end; i++) pulled[i] = share * live[i]!;
    }
    return pulled;
  };
}

/** Geometric mean of a response's token ratios; the gradient flows through all of them (GSPO). */
export function sequenceMean(batch: Prepared, reference: string): Ratio {
  const mean = batch.meanOverTokens(logRatio(batch, reference));
  return Ratio.ofResponses(batch, mean, sharedBy(batch, batch.mask, batch.lengths));
}

/** π_θ/π of one token. */
export function tokenRatio(batch: Prepared, reference: string, clamp: number | null): Ratio {
  const log = logRatio(batch, reference);
  if (clamp === null) return Ratio.ofTokens(batch, log, same);
  const live = inside(log, clamp);
  return Ratio.ofTokens(
    batch,
    log.map((value) => clip(value, -clamp, clamp)),
    (d) => times(d, live),
  );
}

export const RATIO = {
  /** No ratio: 1 everywhere. */
  one(batch: Prepared) {
    return Ratio.ofResponses(batch, new Float64Array(batch.B), (d) => new Float64Array(d.length));
  },

  token(batch: Prepared, _advantages, _bounds, { reference, clamp }: { reference: string; clamp: number | null }) {
    return tokenRatio(batch, reference, clamp);
  },

  /** Geometric mean of the token ratios inside each segment. */
  segment(batch: Prepared, _advantages, _bounds, { reference }: { reference: string }) {
    const { numbers, count } = numbersOf(batch, "segments");
    const { B, T, mask } = batch;
    const size = new Float64Array(B * count);
    for (let i = 0; i < mask.length; i++) size[Math.floor(i / T) * count + numbers[i]!]! += mask[i]!;
    function spread(values: Float64Array): Float64Array {
      const sums = new Float64Array(B * count);
      for (let i = 0; i < mask.length; i++) sums[Math.floor(i / T) * count + numbers[i]!]! += values[i]! * mask[i]!;
      return values.map((_, i) => {
        const place = Math.floor(i / T) * count + numbers[i]!;
        return (sums[place]! / Math.max(size[place]!, 1)) * mask[i]!;
      });
    }
    return Ratio.ofTokens(batch, spread(logRatio(batch, reference)), spread);
  },

  sequence_mean(batch: Prepared, _advantages, _bounds, { reference }: { reference: string }) {
    return sequenceMean(batch, reference);
  },

  /** The same value, but each token's gradient flows through itself alone (GSPO-token). */
  sequence_mean_detached(
    batch: Prepared,
    _advantages,
    _bounds,
    { reference, clamp }: { reference: string; clamp: number | null },
  ) {
    const mean = batch.meanOverTokens(logRatio(batch, reference));
    if (clamp === null) return Ratio.ofResponses(batch, mean, same);
    const { T } = batch;
    return Ratio.ofResponses(
      batch,
      mean.map((value) => Math.min(value, clamp)),
      (d) => d.map((value, i) => value * (mean[Math.floor(i / T)]! <= clamp ? 1 : 0)),
    );
  },

  /** Product of a response's token ratios: the ratio of the whole response; `clamp` limits each token's log-ratio. */
  sequence_product(
    batch: Prepared,
    _advantages,
    _bounds,
    { reference, clamp }: { reference: string; clamp: number | null },
  ) {
    let log = logRatio(batch, reference);
    let live = batch.mask;
    if (clamp !== null) {
      live = times(live, inside(log, clamp));
      log = log.map((value) => clip(value, -clamp, clamp));
    }
    return Ratio.ofResponses(batch, rowSums(times(log, batch.mask), batch.T), sharedBy(batch, live, null));
  },

  /** Geometric mean of token ratios that were each clipped first, on the side the advantage pushes to (GMPO). */
  clipped_sequence_mean(
    batch: Prepared,
    advantages,
    _bounds,
    { reference, log_low, log_high, over }: { reference: string; log_low: number; log_high: number; over: string },
  ) {
    const log = logRatio(batch, reference);
    const { mask, invalid, T } = batch;
    const given = batch.get(over);
    const clipped = perToken(batch);
    const live = perToken(batch);
    const among = perToken(batch);
    const codes = new Uint8Array(log.length);
    for (let i = 0; i < log.length; i++) {
      // A token that counts but is not finite keeps its place, whatever was recorded of it.
      among[i] = mask[i]! * (invalid[i] ? 1 : given[i]!);
      const advantage = advantages[i]!;
      if (advantage === 0) continue;
      const above = log[i]! > log_high && advantage > 0;
      const below = log[i]! < -log_low && advantage < 0;
      clipped[i] = (above ? log_high : below ? -log_low : log[i]!) * among[i]!;
      live[i] = above || below ? 0 : among[i]!;
      codes[i] = above ? HIGH : below ? LOW : 0;
    }
    const size = rowSums(among, T).map((value) => Math.max(value, 1));
    const mean = rowSums(clipped, T).map((value, b) => value / size[b]!);
    return Ratio.ofResponses(batch, mean, sharedBy(batch, live, size), codes);
  },

  /** A mean of the clipped token ratio and the clipped ratio of the response, each clipped before they mix (DHPO). */
  hybrid(
    batch: Prepared,
    advantages,
    { low, high },
    { reference, share, sequence_epsilon }: { reference: string; share: number; sequence_epsilon: number },
  ) {
    const log = logRatio(batch, reference);
    const { T, mask, lengths } = batch;
    const mean = batch.meanOverTokens(log);
    const mixed = perToken(batch);
    /** ∂ log mixed / ∂ of the token's log ratio, and of the response's. */
    const byToken = perToken(batch);
    const bySequence = perToken(batch);
    const codes = new Uint8Array(log.length);
    for (let i = 0; i < log.length; i++) {
      const advantage = advantages[i]!;
      const token = cappedExp(log[i]!);
      const sequence = cappedExp(mean[Math.floor(i / T)]!);
      const tokenOut = (advantage > 0 && token > high[i]!) || (advantage < 0 && token < low[i]!);
      const sequenceOut =
        (advantage > 0 && sequence > 1 + sequence_epsilon) || (advantage < 0 && sequence < 1 - sequence_epsilon);
      const bounded = clip(sequence, 1 - sequence_epsilon, 1 + sequence_epsilon);
      const tokenPart = share * (tokenOut ? clip(token, low[i]!, high[i]!) : token);
      const sequencePart = (1 - share) * (sequenceOut ? bounded : sequence);
      mixed[i] = tokenPart + sequencePart;
      byToken[i] = (tokenPart / mixed[i]!) * (tokenOut ? 0 : 1);
      bySequence[i] = (sequencePart / mixed[i]!) * (sequenceOut ? 0 : 1) * mask[i]!;
      codes[i] = tokenOut && sequenceOut ? (advantage > 0 ? HIGH : LOW) : 0;
    }
    return Ratio.ofTokens(
      batch,
      mixed.map(Math.log),
      (d) => {
        const throughMean = rowSums(times(d, bySequence), T);
        return d.map((value, i) => {
          const b = Math.floor(i / T);
          return (value * byToken[i]! + throughMean[b]! / lengths[b]!) * mask[i]!;
        });
      },
      codes,
    );
  },

  /** Mean log-prob of a response, compared with nothing: the score of a discriminative objective. */
  mean_log_prob(batch: Prepared) {
    return Ratio.ofResponses(
      batch,
      batch.meanOverTokens(batch.get("log_probs")),
      sharedBy(batch, batch.mask, batch.lengths),
    );
  },
} satisfies Table<[batch: Prepared, advantages: Float64Array, bounds: Bounds], Ratio>;
