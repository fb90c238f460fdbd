import { describe, expect, it } from "vitest";

import { spiral } from "./spiral";

const radii = (path: string) => path.slice(1).split("L").map((point) => Math.hypot(...(point.split(" ").map(Number) as [number, number])));

describe("spiral", () => {
  it("starts at 12 o'clock, ends at 9 and stays between its radii", () => {
    const path = spiral([0, 1, 2, 3], 5, 12);
    expect(path.startsWith("M0.0 -5.0")).toBe(true);
    expect(path.endsWith("-12.0 0.0") || path.endsWith("-12.0 -0.0")).toBe(true);
    expect(radii(path).every((r) => r > 4.9 && r < 12.1)).toBe(true);
  });

  it("takes long runs, flat ones and gaps", () => {
    expect(radii(spiral(Array.from({ length: 10_000 }, (_, i) => Math.sin(i)), 5, 12)).length).toBeLessThan(70);
    for (const radius of radii(spiral([2, undefined, NaN, 2], 5, 11))) expect(radius).toBeCloseTo(8, 0);
    expect(spiral([1], 5, 12)).toBe("");
    expect(spiral([], 5, 12)).toBe("");
  });
});
