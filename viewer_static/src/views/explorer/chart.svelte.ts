/** What the charts of the opened run show: its metrics, which of them, and the update that is pointed at. */
import { lit } from "../../links";
import { type Metric, metricOf } from "../../metrics";
import { run } from "../../state/run.svelte";
import { selection } from "../../state/selection.svelte";
import { updates } from "../../state/updates.svelte";
import { nearest } from "./geometry";
import { firstMetrics, phasesOf, recorded, type Series, seriesOf } from "./series";

/** Rings that can still be told apart. */
export const MOST_RINGS = 12;

class Chart {
  readonly lines = $derived(run.index.metrics[selection.kind]);
  /** Update numbers of all lines, ascending. */
  readonly numbers: Float64Array = $derived(seriesOf(this.lines, "").updates);
  readonly captured: readonly number[] = $derived(updates.all.map((u) => u.update));
  /** What a click can open: captured updates, or any where none was captured. */
  readonly targets: readonly number[] = $derived(this.captured.length ? this.captured : [...this.numbers]);
  readonly first: number = $derived(Math.min(this.numbers[0] ?? Infinity, this.captured[0] ?? Infinity));
  readonly last: number = $derived(Math.max(this.numbers.at(-1) ?? -Infinity, this.captured.at(-1) ?? -Infinity));
  readonly phases = $derived(phasesOf(this.lines));

  /** Metrics this run has numbers of, in reading order. */
  readonly offered: readonly Metric[] = $derived(recorded(this.lines));
  readonly #first: readonly string[] = $derived(firstMetrics(this.lines, this.offered));
  /** Metrics on the chart, in reading order. */
  readonly shown: readonly Metric[] = $derived.by(() => {
    const names = new Set(selection.metrics ?? this.#first);
    return this.offered.filter((metric) => names.has(metric.name));
  });
  /** Whether every metric is offered, not only those on the chart and those it starts with. */
  all = $state(false);
  readonly listed: readonly Metric[] = $derived.by(() => {
    const names = new Set([...this.#first, ...this.shown.map((metric) => metric.name)]);
    return this.all ? this.offered : this.offered.filter((metric) => names.has(metric.name));
  });

  readonly lit: ReadonlySet<string> = $derived(lit(selection.focus).metrics);
  #explained = $state("");
  /** The metric whose meaning is written out: the one last pointed at. */
  readonly explained: Metric | null = $derived(
    this.offered.find((metric) => metric.name === this.#explained) ?? this.shown[0] ?? this.offered[0] ?? null,
  );
  /** The metric that is pointed at. */
  readonly pointed: string | null = $derived(selection.focus?.kind === "metric" ? selection.focus.name : null);

  /** The update whose numbers are shown: the one that is pointed at, else the open one. */
  readonly at: number | null = $derived(selection.hoveredUpdate ?? selection.update);

  readonly noun: string = $derived(selection.kind === "eval" ? "evaluation batch" : "update");

  series(name: string): Series {
    return seriesOf(this.lines, name);
  }

  /** A metric's value at an update; NaN where it has none. */
  value(name: string, update: number | null): number {
    if (update === null) return NaN;
    const at = nearest(this.numbers, update);
    return this.numbers[at] === update ? (this.series(name).values[at] as number) : NaN;
  }

  toggle(name: string): void {
    const on = this.shown.map((metric) => metric.name);
    selection.metrics = on.includes(name) ? on.filter((other) => other !== name) : [...on, name];
  }

  /** Points at a metric: its counterparts in the other panes are lit, its meaning is written out. */
  point(name: string | null): void {
    if (name === null) {
      if (this.pointed !== null) selection.focus = null;
    } else if (name !== this.pointed) {
      selection.focus = { kind: "metric", name };
      this.#explained = metricOf(name).name;
    }
  }

  pick(update: number): void {
    selection.openUpdate(selection.kind, update);
  }

  /** The arrow keys of a chart; whether the key was one of them. */
  step(key: string): boolean {
    const many = Math.max(1, Math.round(this.targets.length / 10));
    const by = {
      ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -many, PageUp: many, Home: -Infinity, End: Infinity,
    }[key];
    if (by === undefined || !this.targets.length) return false;
    const now = selection.update ?? this.first;
    const near = nearest(this.targets, now);
    const on = this.targets[near] as number;
    // From between two captured ones, a step goes to the one on that side.
    const start = on === now ? near : by > 0 === on > now ? near - Math.sign(by) : near;
    this.pick(this.targets[Math.max(0, Math.min(this.targets.length - 1, start + by))] as number);
    return true;
  }
}

export const chart = new Chart();
