/** Geometry of the linear charts: a row a metric, one axis of updates for all. Pixels. */
import type { UpdateMetrics } from "../../bundle/types";
import type { Metric } from "../../metrics";
import { diamond, sparse } from "./geometry";
import { lttb } from "./lttb";
import { type Phase, seriesOf } from "./series";

/** Where lines begin: names and values stand left of it. */
export const LEFT = 98;
export const RIGHT = 8;
export const TOP = 27;
export const ROW = 44;
export const PLOT = 35;

/** The updates in view, and where the last of them is drawn. */
export interface Axis {
  low: number;
  high: number;
  right: number;
}

export function toX({ low, high, right }: Axis, update: number): number {
  return high > low ? LEFT + ((update - low) / (high - low)) * (right - LEFT) : (LEFT + right) / 2;
}

export function toUpdate({ low, high, right }: Axis, px: number): number {
  return low + ((px - LEFT) / Math.max(1, right - LEFT)) * (high - low);
}

/** A run on the chart; the first is the open one, and drawn without dashes. */
export interface Charted {
  lines: readonly UpdateMetrics[];
  dash: string;
  name: string;
}

export interface Drawn {
  dash: string;
  name: string;
  /** SVG paths: of the line, and of the ground below the open run's. */
  line: string;
  ground: string;
  /** Where the line ends, in view. */
  end: readonly [number, number] | null;
  points: number;
}

export interface Row {
  metric: Metric;
  top: number;
  /** The open run's range in view; of all runs where they share it. */
  least: number;
  most: number;
  y: (value: number) => number;
  drawn: readonly Drawn[];
}

/**
 * A row a metric. Lines are sampled anew for what is in view. Where runs are `apart`, each has its own range, and is
 * stretched over the length of the open one.
 */
export function rowsOf(axis: Axis, metrics: readonly Metric[], runs: readonly Charted[], apart: boolean): Row[] {
  const [own] = runs;
  const whole = own ? ends(seriesOf(own.lines, "").updates) : ([0, 0] as const);
  const all = runs.map((each) => {
    const updates = seriesOf(each.lines, "").updates;
    const [first, last] = ends(updates);
    const stretched = apart && each !== own && last > first;
    const at = stretched ? updates.map((u) => whole[0] + ((u - first) / (last - first)) * (whole[1] - whole[0])) : updates;
    return { ...each, at, xs: at.map((u) => toX(axis, u)), span: inView(at, axis) };
  });
  return metrics.map((metric, row) => {
    const parts = all.map((each) => {
      const { values } = seriesOf(each.lines, metric.name);
      return { ...each, values, range: rangeOf(values, each, axis) };
    });
    const shared = [Math.min(...parts.map((each) => each.range[0])), Math.max(...parts.map((each) => each.range[1]))] as const;
    const top = TOP + row * ROW;
    const scale = ([least, most]: readonly [number, number]) => (value: number) =>
      most > least ? top + PLOT - 2 - ((value - least) / (most - least)) * (PLOT - 4) : top + PLOT / 2;
    const drawn = parts.map((each) => draw(each, scale(apart ? each.range : shared), top, axis.right));
    const [least, most] = apart ? (parts[0]?.range ?? shared) : shared;
    return { metric, top, least, most, y: scale([least, most]), drawn };
  });
}

type Placed = Charted & { at: Float64Array; xs: Float64Array; span: readonly [number, number]; values: Float64Array };

function draw({ xs, span, values, dash, name }: Placed, y: (value: number) => number, top: number, right: number): Drawn {
  let [line, ground, last, points] = ["", "", -1, 0];
  for (const stretch of lttb(xs, values, span[0], span[1], (right - LEFT) / 1.5)) {
    const corners = stretch.map((j) => `${(xs[j] as number).toFixed(1)} ${y(values[j] as number).toFixed(1)}`);
    points += stretch.length;
    last = stretch.at(-1) as number;
    if (corners.length === 1) line += `M${(xs[last] as number) - 1.5} ${y(values[last] as number).toFixed(1)}h3`;
    else line += `M${corners.join("L")}`;
    if (!dash) ground += `M${corners.join("L")}V${top + PLOT}H${(xs[stretch[0] as number] as number).toFixed(1)}Z`;
  }
  const end = last < 0 ? null : ([Math.min(right, xs[last] as number), y(values[last] as number)] as const);
  return { dash, name, line, ground, end, points };
}

function ends(numbers: Float64Array): readonly [number, number] {
  return [numbers[0] ?? 0, numbers.at(-1) ?? 0];
}

/** What of ascending numbers is in view, and one more on either side: by index, `[from, to)`. */
function inView(numbers: Float64Array, { low, high }: Axis): [number, number] {
  let from = 0;
  while (from < numbers.length && (numbers[from] as number) < low) from++;
  let to = from;
  while (to < numbers.length && (numbers[to] as number) <= high) to++;
  return [Math.max(0, from - 1), Math.min(numbers.length, to + 1)];
}

/** Smallest and largest finite value in view; infinite where there is none. */
function rangeOf(values: Float64Array, { at, span }: Pick<Placed, "at" | "span">, { low, high }: Axis): readonly [number, number] {
  let [least, most] = [Infinity, -Infinity];
  for (let j = span[0]; j < span[1]; j++) {
    const value = values[j] as number;
    const update = at[j] as number;
    if (!Number.isFinite(value) || update < low || update > high) continue;
    least = Math.min(least, value);
    most = Math.max(most, value);
  }
  return [least, most];
}

/** Phases as lines above the rows: every other one, those between, and those too short to tell apart. */
export function phasePaths(axis: Axis, phases: readonly Phase[], numbers: Float64Array): { even: string; odd: string; thin: string } {
  let [even, odd, thin] = ["", "", ""];
  phases.forEach(({ start, end }, i) => {
    const begins = numbers[start] as number;
    const next = numbers[end];
    const from = Math.max(LEFT, toX(axis, start ? begins - 0.5 : begins));
    const to = Math.min(axis.right, toX(axis, next === undefined ? (numbers[end - 1] as number) : next - 0.5));
    if (to <= from) return;
    const path = `M${from.toFixed(1)} 21H${to.toFixed(1)}`;
    if (to - from < 2) thin += path;
    else if (i % 2) odd += path;
    else even += path;
  });
  return { even, odd, thin };
}

/** The marks of captured updates: diamonds, or strokes where they are many. The open one has its own. */
export function marksPath(axis: Axis, captured: readonly number[], open: number | null): { path: string; dense: boolean } {
  const shown = captured.filter((update) => update >= axis.low && update <= axis.high);
  const kept = sparse(shown.map((update) => toX(axis, update)), 3.2);
  const dense = kept.length < shown.length || shown.length * 8 > axis.right - LEFT;
  let path = "";
  for (const i of kept) {
    const at = toX(axis, shown[i] as number);
    if (shown[i] === open) continue;
    path += dense ? `M${at.toFixed(1)} 8V14` : diamond(at, 11, 3.6);
  }
  return { path, dense };
}
