import { describe, expect, it } from "vitest";

import { channelNamed } from "../channels";
import { ends, scaleOf } from "../colour";
import { histogram } from "./histogram";
import { place } from "./place";
import { nearest, thin } from "./strip";
import { lineWidth } from "./tokens";

describe("the update strip", () => {
  it("keeps the lowest and the highest of each pixel", () => {
    const points = Array.from({ length: 1000 }, (_, i) => ({ x: i / 100, y: i === 555 ? 99 : i === 556 ? -99 : i % 7 }));
    const thinned = thin(points);
    expect(thinned.length).toBeLessThanOrEqual(20);
    expect(thinned.map((p) => p.y)).toEqual(expect.arrayContaining([99, -99]));
    expect(thinned.every((p, i) => i === 0 || p.x >= (thinned[i - 1]?.x ?? 0))).toBe(true);
    expect(thin(points.slice(0, 2))).toEqual(points.slice(0, 2));
  });

  it("finds the nearest captured update", () => {
    const captured = [0, 3, 10];
    expect([-5, 0, 1, 2, 6, 7, 99].map((v) => nearest(captured, v))).toEqual([0, 0, 0, 3, 3, 10, 10]);
    expect(nearest([], 1)).toBeNull();
  });
});

describe("the legend's histogram", () => {
  const channel = channelNamed("log_ratio");

  it("counts what counts, outliers at the ends", () => {
    const data = [{ values: [-9, -1, 0, 1, NaN, 5], mask: [1, 1, 1, 1, 1, 0] }];
    const scale = { ...scaleOf(channel, data), reach: 1 };
    const bins = histogram(scale, data, 3);
    expect(bins.map((b) => b.count)).toEqual([2, 1, 1]);
    expect(bins.map((b) => b.colour)).toEqual(["d2", "d5", "d8"]);
  });

  it("puts equal values into the middle, and knows its ends", () => {
    const data = [{ values: [0, 0], mask: [1, 1] }];
    const scale = scaleOf(channel, data);
    expect(histogram(scale, data, 5).map((b) => b.count)).toEqual([0, 0, 2, 0, 0]);
    expect(ends(scaleOf(channelNamed("probability"), data))).toEqual([0, 1]);
    expect(ends(scaleOf(channelNamed("log_probs"), [{ values: [-3], mask: [1] }]))).toEqual([-3, 0]);
  });
});

describe("the width of a line of tokens", () => {
  const tokens = (...strings: string[]) => ({ n: strings.length, ids: [], strings, mask: [], reason: null, channels: new Map() });

  it("grows with the text, more with wide characters, and is none where a line breaks", () => {
    expect(lineWidth(tokens())).toBe(0);
    expect(lineWidth(tokens("12", "3"))).toBeCloseTo(3 * 7.8 + 8);
    expect(lineWidth(tokens("你"))).toBeGreaterThan(lineWidth(tokens("a")));
    expect(lineWidth(tokens("a\n", "b"))).toBe(Infinity);
  });
});

describe("the card's place", () => {
  it("is below its token, above where there is no room, and always inside", () => {
    expect(place({ left: 100, top: 50, bottom: 70 }, 300, 200, 1000, 800)).toEqual({ left: 88, top: 78 });
    expect(place({ left: 100, top: 700, bottom: 720 }, 300, 200, 1000, 800)).toEqual({ left: 88, top: 492 });
    expect(place({ left: 990, top: 50, bottom: 70 }, 300, 200, 1000, 800)?.left).toBe(692);
    expect(place({ left: 0, top: 90, bottom: 110 }, 300, 190, 400, 200)).toEqual({ left: 8, top: 8 });
  });

  it("is nowhere while its token is out of sight", () => {
    expect(place({ left: 0, top: -40, bottom: -20 }, 300, 200, 1000, 800)).toBeNull();
  });
});
