import { describe, expect, it } from "vitest";

import { mostMoved } from "./moved";
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
  });
});
