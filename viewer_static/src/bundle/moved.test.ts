import { describe, expect, it } from "vitest";

import { furthestMoved, mostMoved, unmoved } from "./moved";
import type { CapturedUpdate, UpdateMetrics } from "./types";

const captured = (...numbers: number[]) => numbers.map((update) => ({ update }) as CapturedUpdate);
const metrics = (update: number, values: Record<string, number>) =>
  ({ update, values: new Map(Object.entries(values)) }) as UpdateMetrics;

describe("the update for a first look", () => {
  it("is the captured one that has moved most, by clipping or by ratio", () => {
    const of = [
      metrics(0, { importance_sampling_ratio: 1 }),
      metrics(1, { importance_sampling_ratio: 0.8, clip_fraction: 0.1 }),
      metrics(2, { clip_fraction: 0.9 }),
      metrics(3, { importance_sampling_ratio: 1.1 }),
    ];
    expect(mostMoved(captured(0, 1, 3), of)).toBe(1);
    expect(mostMoved(captured(0, 1, 2, 3), of)).toBe(2);
  });

  it("is the last one where nothing has moved, and none where none was captured", () => {
    expect(mostMoved(captured(0, 4), [metrics(0, { importance_sampling_ratio: 1, clip_fraction: 0 })])).toBe(4);
    expect(mostMoved(captured(0, 4), [metrics(4, { importance_sampling_ratio: NaN })])).toBe(4);
    expect(mostMoved([], [])).toBeNull();
    expect(furthestMoved(captured(0, 4), [metrics(0, { importance_sampling_ratio: 1, clip_fraction: 0 })])).toBeNull();
  });

  it("says what was looked at: no other update has more of it", () => {
    const of = [metrics(0, { importance_sampling_ratio: 1.08, clip_fraction: 0.05 }), metrics(1, { importance_sampling_ratio: 1.002, clip_fraction: 0.15 })];
    expect(furthestMoved(captured(0, 1), of)).toEqual({ update: 1, by: "clipped", value: 0.15 });
    expect(furthestMoved(captured(0), of)).toEqual({ update: 0, by: "ratio", value: 1.08 });
  });
});

describe("whether the policy is still the one that sampled", () => {
  it("is read from the metrics", () => {
    expect(unmoved(metrics(0, { importance_sampling_ratio: 1.00001, clip_fraction: 0 }))).toBe(true);
    expect(unmoved(metrics(0, { importance_sampling_ratio: 2.24, clip_fraction: 0.3 }))).toBe(false);
    expect(unmoved(metrics(0, { importance_sampling_ratio: 1, clip_fraction: 0.01 }))).toBe(false);
    expect(unmoved(metrics(0, { importance_sampling_ratio: NaN }))).toBe(false);
    expect(unmoved(metrics(0, {}))).toBeNull();
    expect(unmoved(undefined)).toBeNull();
  });
});
