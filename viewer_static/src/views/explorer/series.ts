/** A metric over the updates of a run, as plain arrays, made once and kept for as long as the run's metrics are. */
import type { UpdateMetrics } from "../../bundle/types";
import { METRICS, type Metric, metricOf } from "../../metrics";

export interface Series {
  /** Update numbers, ascending. */
  updates: Float64Array;
  /** A value for each, NaN where the update has none. */
  values: Float64Array;
  /** Smallest and largest finite value, and how many there are; NaN and 0 without any. */
  low: number;
  high: number;
  /** The updates at which it is smallest and largest, the first of them; NaN without any. */
  lowAt: number;
  highAt: number;
  count: number;
}

type Lines = readonly UpdateMetrics[];

const kept = new WeakMap<Lines, Map<string, Series>>();

export function seriesOf(lines: Lines, name: string): Series {
  let of = kept.get(lines);
  if (!of) kept.set(lines, (of = new Map()));
  let series = of.get(name);
  if (!series) of.set(name, (series = make(lines, name)));
  return series;
}

function make(lines: Lines, name: string): Series {
  const updates = new Float64Array(lines.length);
  const values = new Float64Array(lines.length);
  let low = Infinity;
  let high = -Infinity;
  let [lowAt, highAt] = [NaN, NaN];
  let count = 0;
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i] as UpdateMetrics;
    const value = line.values.get(name) ?? NaN;
    updates[i] = line.update;
    values[i] = value;
    if (!Number.isFinite(value)) continue;
    if (value < low) [low, lowAt] = [value, line.update];
    if (value > high) [high, highAt] = [value, line.update];
    count++;
  }
  return { updates, values, low: count ? low : NaN, high: count ? high : NaN, lowAt, highAt, count };
}

/** Metrics that the run has a number of: the known ones in reading order, then the trainer's own as it logged them. */
export function recorded(lines: Lines): Metric[] {
  const names = new Set<string>();
  for (const line of lines) for (const name of line.values.keys()) names.add(name);
  const known = METRICS.filter((metric) => names.delete(metric.name));
  return [...known, ...[...names].map(metricOf)].filter((metric) => seriesOf(lines, metric.name).count > 0);
}

/** The metrics worth a first look, most telling first. */
const FIRST = [
  "reward", "group_reward_std", "response_length", "policy_objective", "entropy", "kl", "importance_sampling_ratio",
  "clip_fraction", "grad_norm", "zero_std_groups", "reward_std",
];

/** What a chart starts with: up to eight known metrics that vary; where none does, those there are. */
export function firstMetrics(lines: Lines, offered: readonly Metric[]): string[] {
  const wanted = (names: readonly string[]) => {
    const some = new Set(names.slice(0, 8));
    return offered.map((metric) => metric.name).filter((name) => some.has(name));
  };
  const there = new Set(offered.map((metric) => metric.name));
  const known = FIRST.filter((name) => there.has(name));
  const vary = known.filter((name) => {
    const { low, high } = seriesOf(lines, name);
    return high > low;
  });
  return wanted(vary.length ? vary : known.length ? known : [...there]);
}

/** A phase: consecutive updates on the same rollouts, by index into the lines, `[start, end)`. */
export interface Phase {
  start: number;
  end: number;
}

const phases = new WeakMap<Lines, Phase[]>();

/** Runs of updates on the same samples: a new phase begins at each update that is the first on its rollout. */
export function phasesOf(lines: Lines): Phase[] {
  let found = phases.get(lines);
  if (!found) {
    found = [];
    for (let i = 0; i < lines.length; i++) {
      const line = lines[i] as UpdateMetrics;
      const phase = found.at(-1);
      if (!phase || line.first || line.rollouts[0] !== lines[i - 1]?.rollouts[0]) found.push({ start: i, end: i + 1 });
      else phase.end = i + 1;
    }
    phases.set(lines, found);
  }
  return found;
}
