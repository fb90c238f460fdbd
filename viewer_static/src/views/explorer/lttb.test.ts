import fc from "fast-check";
import { describe, expect, it } from "vitest";

import { lttb } from "./lttb";

/** A line of finite values and gaps. */
const line = fc.array(fc.oneof({ weight: 9, arbitrary: fc.double({ noNaN: true, min: -1e6, max: 1e6 }) }, { weight: 1, arbitrary: fc.constant(NaN) }), {
  minLength: 1,
  maxLength: 400,
});

function evenly(count: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => i);
}

describe("largest triangle three buckets", () => {
  it("keeps first, last, lowest and highest, in order, and breaks at gaps", () => {
    fc.assert(
      fc.property(line, fc.integer({ min: 1, max: 80 }), (values, buckets) => {
        const stretches = lttb(evenly(values.length), values, 0, values.length, buckets);
        const kept = stretches.flat();
        const finite = values.flatMap((value, i) => (Number.isFinite(value) ? [i] : []));
        if (!finite.length) {
          expect(stretches).toEqual([]);
          return;
        }
        expect(kept).toEqual([...new Set(kept)].sort((a, b) => a - b));
        expect(kept.every((i) => Number.isFinite(values[i]))).toBe(true);
        const shown = kept.map((i) => values[i] as number);
        const all = finite.map((i) => values[i] as number);
        expect(Math.min(...shown)).toBe(Math.min(...all));
        expect(Math.max(...shown)).toBe(Math.max(...all));
        expect([kept[0], kept.at(-1)]).toEqual([finite[0], finite.at(-1)]);
        // A stretch never reaches over a missing value, and every run of values has one.
        for (const stretch of stretches) {
          const [from, to] = [stretch[0] as number, stretch.at(-1) as number];
          expect(values.slice(from, to + 1).every(Number.isFinite)).toBe(true);
        }
        const runs = finite.filter((i) => !finite.includes(i - 1)).length;
        expect(stretches.length).toBe(runs);
        // The first and last of each stretch, one of each bucket, and the two peaks.
        expect(kept.length).toBeLessThanOrEqual(2 * runs + runs + buckets + 2);
      }),
    );
  });

  it("draws all points where there is room, and about a bucket's each where there is not", () => {
    const values = Float64Array.from({ length: 20_000 }, (_, i) => Math.sin(i / 500) + (i === 7777 ? 40 : 0));
    const x = evenly(values.length);
    expect(lttb(x, values, 0, 50, 400)[0]).toHaveLength(50);
    const kept = lttb(x, values, 0, values.length, 300)[0] as number[];
    expect(kept).toContain(7777);
    expect(kept.length).toBeLessThanOrEqual(303);
    // What is in view is sampled anew: a part gets as many points as the whole had.
    const part = lttb(x, values, 5000, 7000, 300)[0] as number[];
    expect(part.length).toBeGreaterThan(280);
    expect(part.every((i) => i >= 5000 && i < 7000)).toBe(true);
  });

  it("has buckets of equal width on the screen: where x is stretched there are more points", () => {
    const count = 10_000;
    const x = Float64Array.from({ length: count }, (_, i) => (i < 100 ? i * 5 : 500 + (i - 100) * 0.05));
    const values = Float64Array.from({ length: count }, (_, i) => Math.sin(i * 12.9898) * 43758.5453 % 1);
    const kept = lttb(x, values, 0, count, 200)[0] as number[];
    expect(kept.filter((i) => i < 100).length).toBeGreaterThan(80);
  });
});
