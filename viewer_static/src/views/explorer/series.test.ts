import { describe, expect, it } from "vitest";

import type { UpdateMetrics } from "../../bundle/types";
import { firstMetrics, phasesOf, recorded, seriesOf } from "./series";

function lines(count: number, values: (update: number) => Record<string, number>, rollout = (update: number) => update >> 1): UpdateMetrics[] {
  return Array.from({ length: count }, (_, update) => ({
    kind: "train",
    update,
    step: update + 1,
    rollouts: [rollout(update)],
    first: update % 2 === 0,
    captured: true,
    values: new Map(Object.entries(values(update))),
  }));
}

describe("a run's metrics as series", () => {
  it("have a value for each update, missing ones said, and their range", () => {
    const run = lines(4, (update): Record<string, number> => (update === 2 ? {} : { reward: update - 1 }));
    expect([...seriesOf(run, "reward").values]).toEqual([-1, 0, NaN, 2]);
    expect(seriesOf(run, "reward")).toMatchObject({ low: -1, high: 2, count: 3 });
    expect(seriesOf(run, "kl")).toMatchObject({ low: NaN, high: NaN, count: 0 });
    expect(seriesOf(run, "reward")).toBe(seriesOf(run, "reward"));
  });

  it("are offered where there is a number: the known ones in reading order, then the trainer's own", () => {
    const run = lines(2, () => ({ "completions/x": 1, entropy: 0.5, reward: 1, kl: NaN, __proto__x: 2 }));
    expect(recorded(run).map((metric) => metric.name)).toEqual(["reward", "entropy", "completions/x", "__proto__x"]);
    expect(recorded(run)[2]).toMatchObject({ label: "completions/x", own: true });
    expect(recorded([])).toEqual([]);
  });

  it("start with known ones that vary, and with what there is where none does", () => {
    const run = lines(3, (update) => ({ reward: update, kl: 0, grad_norm: update, own: update }));
    expect(firstMetrics(run, recorded(run))).toEqual(["reward", "grad_norm"]);
    const flat = lines(1, () => ({ reward: 1, kl: 0 }));
    expect(firstMetrics(flat, recorded(flat))).toEqual(["reward", "kl"]);
    const own = lines(2, (update) => ({ a: update, b: 1 }));
    expect(firstMetrics(own, recorded(own))).toEqual(["a", "b"]);
  });

  it("fall into phases, one for the updates on the same samples", () => {
    const run = lines(5, () => ({}));
    expect(phasesOf(run)).toEqual([{ start: 0, end: 2 }, { start: 2, end: 4 }, { start: 4, end: 5 }]);
    const never = lines(4, () => ({}), (update) => (update < 3 ? 0 : 1)).map((line) => ({ ...line, first: false }));
    expect(phasesOf(never)).toEqual([{ start: 0, end: 3 }, { start: 3, end: 4 }]);
  });
});
