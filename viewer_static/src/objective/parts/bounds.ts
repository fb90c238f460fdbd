/** Bounds: where a gate bends, as the lowest and the highest ratio. */
import { type Prepared } from "../prepared";
import { clip, toEven } from "../numbers";
import { logRatio } from "./ratio";
import { perToken, type Bounds, type Table } from "./types";

function everywhere(batch: Prepared, low: number, high: number): Bounds {
  return { low: perToken(batch).fill(low), high: perToken(batch).fill(high) };
}

interface EntropyAdaptive {
  readonly epsilon_low: number;
  readonly epsilon_high: number;
  readonly stretch: number;
  readonly quantile: number;
  readonly low_side: string;
}

/**
 * How high the entropy is among the batch's tokens: 0 at the quantile, 1 at the highest, −1 at the lowest.
 *
 * On a logarithmic scale, linear on each side. `lowSide` says what stands below the quantile: `negative`, as HAPO means
 * it, or `positive`, which its released code makes of it.
 */
export function entropyLevel(batch: Prepared, quantile: number, lowSide: string): Float64Array {
  const { valid } = batch;
  const log = batch.get("entropies").map((entropy) => Math.log(Math.max(entropy, 1e-8)));
  const ordered = log.filter((_, i) => valid[i]! > 0).sort();
  if (ordered.length === 0) return perToken(batch);
  const middle = ordered[toEven(quantile * (ordered.length - 1))]!;
  const distance = log.map((value, i) => (valid[i]! > 0 ? value - middle : 0));
  let squares = 0;
  for (const value of distance) squares += value * value;
  const deviation = Math.sqrt(Math.max(squares / ordered.length, 1e-8));
  let highest = 1e-8;
  let lowest = -1e-8;
  for (let i = 0; i < distance.length; i++) {
    distance[i]! /= deviation;
    highest = Math.max(highest, distance[i]!);
    lowest = Math.min(lowest, distance[i]!);
  }
  const side = lowSide === "positive" ? 1 : -1;
  return distance.map((value) => (value > 0 ? value / highest : (side * value) / lowest));
}

/** Room where the policy is undecided: ε_high(1 + αh) at high entropy, ε_low(1 − αh) at low entropy (HAPO). */
export function entropyAdaptive(batch: Prepared, values: EntropyAdaptive): Bounds {
  const { epsilon_low, epsilon_high, stretch, quantile, low_side } = values;
  const level = entropyLevel(batch, quantile, low_side);
  return {
    low: level.map((h) => 1 - (h <= 0 ? epsilon_low * (1 - stretch * h) : epsilon_low)),
    high: level.map((h) => 1 + (h > 0 ? epsilon_high * (1 + stretch * h) : epsilon_high)),
  };
}

export const BOUNDS = {
  /** No bounds. */
  unbounded(batch: Prepared) {
    return everywhere(batch, 0, Infinity);
  },

  /** [1 − ε_low, 1 + ε_high]. */
  around_one(batch: Prepared, _advantages, values: { epsilon_low: number; epsilon_high: number }) {
    return everywhere(batch, 1 - values.epsilon_low, 1 + values.epsilon_high);
  },

  /** The ratio itself between two numbers. */
  absolute(batch: Prepared, _advantages, { ratio_low, ratio_high }: { ratio_low: number; ratio_high: number }) {
    return everywhere(batch, ratio_low, ratio_high);
  },

  /** Wider where the sampling probability was small (DCPO): ½ + ½√max(1 − 4ε_low/q, 0), ½ + ½√(1 + 4ε_high/q). */
  probability_adaptive(
    batch: Prepared,
    _advantages,
    values: { epsilon_low: number; epsilon_high: number; ratio_cap: number },
  ) {
    const inverse = batch.get("old_log_probs").map((old) => Math.exp(-old));
    return {
      low: inverse.map((q) => 0.5 + 0.5 * Math.sqrt(Math.max(1 - 4 * values.epsilon_low * q, 0))),
      high: inverse.map((q) => Math.min(0.5 + 0.5 * Math.sqrt(1 + 4 * values.epsilon_high * q), values.ratio_cap)),
    };
  },

  /** [1 − ε_low·s, 1 + ε_high·s] with s = 1 + elasticity·|A|/(1 + |A|) (ETR, scaling law not verified). */
  advantage_adaptive(
    _batch: Prepared,
    advantages,
    { epsilon_low, epsilon_high, elasticity }: { epsilon_low: number; epsilon_high: number; elasticity: number },
  ) {
    const stretch = advantages.map((advantage) => {
      const size = Math.abs(advantage);
      return 1 + (elasticity * size) / (1 + size);
    });
    return { low: stretch.map((s) => 1 - epsilon_low * s), high: stretch.map((s) => 1 + epsilon_high * s) };
  },

  /** Bounds raised step by step until positive tokens hold their share of the batch's contribution (BAPO). */
  batch_search(
    batch: Prepared,
    advantages,
    values: {
      ratio_low: number;
      ratio_low_limit: number;
      ratio_high: number;
      ratio_high_limit: number;
      step: number;
      target: number;
    },
  ) {
    const { ratio_low_limit, ratio_high_limit, step, target } = values;
    const ratio = logRatio(batch, "old_log_probs").map((log) => Math.exp(clip(log, -20, 20)));
    const { valid } = batch;
    function share(low: number, high: number): number {
      let gain = 0;
      let loss = 0;
      for (let i = 0; i < ratio.length; i++) {
        const advantage = advantages[i]!;
        if (!(valid[i]! > 0)) continue;
        if (advantage > 0) gain += Math.min(ratio[i]!, high) * advantage;
        else if (advantage < 0) loss -= Math.max(ratio[i]!, low) * advantage;
      }
      return loss > 0 ? gain / loss : Infinity;
    }
    let low = values.ratio_low;
    let high = values.ratio_high;
    while (share(low, high) < target && low < ratio_low_limit && step > 0) low = Math.min(low + step, ratio_low_limit);
    while (share(low, high) < target && high < ratio_high_limit && step > 0) {
      high = Math.min(high + step, ratio_high_limit);
    }
    return everywhere(batch, low, high);
  },

  entropy_adaptive(batch: Prepared, _advantages, values: EntropyAdaptive) {
    return entropyAdaptive(batch, values);
  },
} satisfies Table<[batch: Prepared, advantages: Float64Array], Bounds>;
