/** From values to colour classes: a scale a group, set by the tokens that count. The palettes are in app.css. */
import type { Channel } from "./channels";

/** Steps of the diverging palette (the middle one is neutral) and of the sequential one (the first is neutral). */
export const DIVERGING_STEPS = 11;
export const SEQUENTIAL_STEPS = 6;

/** Share of |value − centre| inside the scale: a few outliers must not bleach everything else. */
const QUANTILE = 0.96;

export interface Scale {
  kind: "diverging" | "sequential";
  centre: number;
  /** Distance from the centre at which the colour is full; 0 where all values are at the centre. */
  reach: number;
  /** Sequential scales that run downwards from the centre. */
  down: boolean;
  /** Whether values lie beyond the scale's lower and upper end: they take the colour of that end. */
  beyond: readonly [boolean, boolean];
  /** Tokens the scale was set by. */
  counted: number;
  /** Smallest and largest value of those. */
  range: readonly [number, number];
}

/**
 * The scale of a channel over a group's responses: symmetric about the centre, its reach the 96th percentile of
 * |value − centre| over the tokens that count. Masked tokens and values that were never computed do not set it.
 */
export function scaleOf(
  channel: Channel,
  responses: readonly { values: ArrayLike<number>; mask: ArrayLike<number> }[],
): Scale {
  const distances = new Float64Array(responses.reduce((n, { values }) => n + values.length, 0));
  let counted = 0;
  let low = Infinity;
  let high = -Infinity;
  for (const { values, mask } of responses) {
    for (let i = 0; i < values.length; i++) {
      const value = values[i] as number;
      if (!mask[i] || !Number.isFinite(value)) continue;
      distances[counted++] = Math.abs(value - channel.centre);
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  const reach = channel.limit === undefined ? quantile(distances.subarray(0, counted), QUANTILE) : Math.abs(channel.limit - channel.centre);
  const scale: Scale = {
    kind: channel.scale,
    centre: channel.centre,
    reach,
    down: channel.down ?? false,
    beyond: [false, false],
    counted,
    range: [low, high],
  };
  return withReach(scale, reach);
}

/** The scale with another far end: what lies beyond it takes the colour of that end. */
export function withReach(scale: Scale, reach: number): Scale {
  const [from, to] = ends({ ...scale, reach });
  return { ...scale, reach, beyond: [scale.range[0] < from, scale.range[1] > to] };
}

/** Left and right end of a scale. */
export function ends(scale: Scale): [number, number] {
  if (scale.kind === "diverging") return [scale.centre - scale.reach, scale.centre + scale.reach];
  return scale.down ? [scale.centre - scale.reach, scale.centre] : [scale.centre, scale.centre + scale.reach];
}

/** The q-quantile by nearest rank, or the largest where that one is 0: rare values are still worth a colour. */
export function quantile(values: ArrayLike<number>, q: number): number {
  if (!values.length) return 0;
  const sorted = Float64Array.from(values).sort();
  const at = sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] as number;
  return at > 0 ? at : (sorted[sorted.length - 1] as number);
}

/**
 * Class of a value: `d0`…`d10` from far below the centre to far above it, `s0`…`s5` from the centre outwards, `none`
 * where there is no value. The neutral step is kept for values that are nearly at the centre.
 */
export function step(value: number, scale: Scale): string {
  if (Number.isNaN(value)) return "none";
  const distance = value - scale.centre;
  if (scale.kind === "diverging") {
    const half = (DIVERGING_STEPS - 1) / 2;
    return `d${half + Math.round(clamp(scale.reach ? distance / scale.reach : 0, -1, 1) * half)}`;
  }
  const out = scale.down ? -distance : distance;
  return `s${Math.round(clamp(scale.reach ? out / scale.reach : 0, 0, 1) * (SEQUENTIAL_STEPS - 1))}`;
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, value));
}
