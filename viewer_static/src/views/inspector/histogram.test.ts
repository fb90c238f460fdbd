import { describe, expect, it } from "vitest";

import { channelNamed } from "../../channels";
import { ends, scaleOf } from "../../colour";
import { histogram } from "./histogram";

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
