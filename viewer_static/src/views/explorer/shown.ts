/** Metrics' numbers as a reader sees them. */
import { number } from "../../format";
import type { Metric } from "../../metrics";

/** A metric's range, for as many digits as it takes to see a change in it. */
export interface Range {
  low: number;
  high: number;
}

/** A value with at least `digits` digits, and as many more as tell a hundredth of the range. */
export function valueText(metric: Metric, value: number, range: Range, digits = 2): string {
  if (Number.isNaN(value)) return "–";
  const times = metric.share ? 100 : 1;
  const size = Math.abs(value * times);
  const span = (range.high - range.low) * times;
  const decimals = span > 0 ? Math.ceil(-Math.log10(span)) + 1 : 0;
  const needed = size >= 1e-3 ? Math.floor(Math.log10(size)) + 1 + decimals : digits;
  return `${number(value * times, Math.max(digits, Math.min(7, needed)))}${metric.share ? " %" : ""}`;
}

/** How a value changed: `▴ 0.03`, `▾ 2 %`, `held`. */
export function changeText(metric: Metric, now: number, before: number): string {
  const change = now - before;
  if (Number.isNaN(change)) return "–";
  if (change === 0) return "held";
  return `${change > 0 ? "▴" : "▾"} ${valueText(metric, Math.abs(change), { low: 0, high: 0 })}`;
}

/** The samples an update trained on: `rollout 3`, `rollouts 3–5`. */
export function rolloutsText(rollouts: readonly number[]): string {
  if (!rollouts.length) return "";
  const low = Math.min(...rollouts);
  const high = Math.max(...rollouts);
  return low === high ? `rollout ${low}` : `rollouts ${low}–${high}`;
}
