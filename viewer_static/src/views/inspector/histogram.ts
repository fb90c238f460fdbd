/** The legend's histogram. */
import { ends, type Scale, step } from "../../colour";

export interface Bin {
  /** Tokens in the bin; what lies beyond the scale is in the first or last one. */
  count: number;
  /** Whether a clipped token is among them. */
  clipped: boolean;
  /** Colour class of the bin's middle. */
  colour: string;
}

/** Counts of the values that count, over `n` bins from one end of the scale to the other. */
export function histogram(
  scale: Scale,
  responses: Iterable<{ values: ArrayLike<number>; mask: ArrayLike<number>; clipped?: ArrayLike<number> | null }>,
  n: number,
): Bin[] {
  const [low, high] = ends(scale);
  const width = (high - low) / n || 1;
  const bins = Array.from({ length: n }, (_, i) => ({ count: 0, clipped: false, colour: step(low + (i + 0.5) * width, scale) }));
  for (const { values, mask, clipped } of responses) {
    for (let i = 0; i < values.length; i++) {
      const value = values[i] as number;
      if (!mask[i] || Number.isNaN(value)) continue;
      const at = high > low ? Math.floor((value - low) / width) : Math.floor(n / 2);
      const bin = bins[Math.max(0, Math.min(n - 1, at))];
      if (!bin) continue;
      bin.count++;
      if (clipped?.[i]) bin.clipped = true;
    }
  }
  return bins;
}
