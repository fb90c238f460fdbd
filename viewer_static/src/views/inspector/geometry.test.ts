import { describe, expect, it } from "vitest";

import { channelNamed } from "../../channels";
import { ends, scaleOf } from "../../colour";
import { histogram } from "./histogram";
import { place } from "./place";
import { lineWidth } from "./tokens";

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
  const token = (left: number, top: number) => ({ left, right: left + 40, top, bottom: top + 20 });
  const pane = { left: 0, right: 1000, top: 48, bottom: 800 };

  it("is below its token, above where there is no room, else beside, and inside the pane", () => {
    expect(place(token(100, 50), 300, 200, pane, 1000)).toEqual({ left: 88, top: 80 });
    expect(place(token(100, 700), 300, 200, pane, 1000)).toEqual({ left: 88, top: 490 });
    expect(place(token(990, 50), 300, 200, pane, 1000)?.left).toBe(690);
    expect(place(token(400, 50), 300, 200, { ...pane, left: 350, right: 800 }, 1000)).toEqual({ left: 388, top: 80 });
    expect(place(token(700, 50), 300, 200, { ...pane, left: 350, right: 800 }, 1000)).toEqual({ left: 490, top: 80 });
    expect(place(token(100, 90), 300, 190, { ...pane, bottom: 200 }, 1000)).toEqual({ left: 150, top: 10 });
    expect(place(token(900, 90), 300, 190, { ...pane, bottom: 200 }, 1000)).toEqual({ left: 590, top: 10 });
  });

  it("is nowhere while its token is out of sight", () => {
    expect(place(token(0, 10), 300, 200, pane, 1000)).toBeNull();
  });
});
