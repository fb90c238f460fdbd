import { describe, expect, it } from "vitest";

import type { UpdateMetrics } from "../../bundle/types";
import { metricOf } from "../../metrics";
import { LEFT, PLOT, rowsOf, TOP, toUpdate, toX } from "./linear";

function lines(values: readonly number[], from = 0): UpdateMetrics[] {
  return values.map((value, i) => ({
    kind: "train", update: from + i, step: i, attempt: 0, rollouts: [0], first: false, captured: true, values: new Map([["reward", value]]), time: 0,
  }) as unknown as UpdateMetrics);
}

const AXIS = { low: 0, high: 100, right: 298 };
const reward = metricOf("reward");
const own = { lines: lines(Array.from({ length: 101 }, (_, i) => i / 100)), dash: "", name: "" };
const other = { lines: lines([10, 30, 20], 5), dash: "3 3", name: "other" };

describe("linear charts", () => {
  it("place updates, and find them again", () => {
    for (const update of [0, 12.5, 100]) expect(toUpdate(AXIS, toX(AXIS, update))).toBeCloseTo(update, 10);
    expect(toX({ low: 3, high: 3, right: 298 }, 3)).toBe((LEFT + 298) / 2);
  });

  it("share an axis, or have one each", () => {
    const [together] = rowsOf(AXIS, [reward], [own, other], false);
    expect([together?.least, together?.most]).toEqual([0, 30]);
    expect(together?.drawn[1]?.end?.[0]).toBeCloseTo(toX(AXIS, 7), 6);
    const [apart] = rowsOf(AXIS, [reward], [own, other], true);
    expect([apart?.least, apart?.most]).toEqual([0, 1]);
    // The other run is as long and as high as there is room, and ends half-way up.
    expect(apart?.drawn[1]?.end?.[0]).toBe(AXIS.right);
    expect(apart?.drawn[1]?.end?.[1]).toBeCloseTo(TOP + PLOT / 2, 6);
  });

  it("take their range from what is in view", () => {
    const [row] = rowsOf({ ...AXIS, low: 40, high: 60 }, [reward], [own], false);
    expect([row?.least, row?.most]).toEqual([0.4, 0.6]);
    const [none] = rowsOf(AXIS, [metricOf("kl")], [own], false);
    expect(none?.drawn[0]?.end).toBeNull();
  });
});
