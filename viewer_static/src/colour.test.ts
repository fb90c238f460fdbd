import { describe, expect, it } from "vitest";

import { channelNamed } from "./channels";
import { ends, quantile, scaleOf, step } from "./colour";

const RATIO = channelNamed("log_ratio");
const ENTROPY = channelNamed("entropies");

describe("the ends of a scale", () => {
  const advantages = channelNamed("advantages");

  it("say on which side values that count lie beyond them", () => {
    const many = Array.from({ length: 98 }, (_, i) => (i % 2 ? 1 : -1));
    const mask = new Array<number>(100).fill(1);
    const scale = scaleOf(advantages, [{ values: [...many, 7, 0], mask }]);
    expect([ends(scale), scale.beyond]).toEqual([[-1, 1], [false, true]]);
    expect(scaleOf(advantages, [{ values: [1, -1, -7], mask: [1, 1, 0] }]).beyond).toEqual([false, false]);
    expect(scaleOf(channelNamed("token_kl"), [{ values: [-0.5, 1], mask: [1, 1] }]).beyond).toEqual([true, false]);
  });
});

describe("scaleOf", () => {
  it("is symmetric and set by the 96th percentile", () => {
    const values = Array.from({ length: 100 }, (_, i) => (i % 2 ? 1 : -1) * (i + 1) * 0.01);
    expect(scaleOf(RATIO, [{ values, mask: values.map(() => 1) }])).toMatchObject({ centre: 0, reach: 0.96, counted: 100 });
  });

  it("is not set by masked tokens, nor by values that were never computed", () => {
    const values = [0.1, -0.2, 50, NaN];
    expect(scaleOf(RATIO, [{ values, mask: [1, 1, 0, 1] }])).toMatchObject({ reach: 0.2, counted: 2 });
  });

  it("is not bleached by a few outliers, and not blind to rare values", () => {
    const many = [...new Array<number>(97).fill(0.1), 9, 9, 9];
    expect(scaleOf(RATIO, [{ values: many, mask: many.map(() => 1) }]).reach).toBe(0.1);
    const rare = [...new Array<number>(99).fill(0), 0.5];
    expect(scaleOf(RATIO, [{ values: rare, mask: rare.map(() => 1) }]).reach).toBe(0.5);
  });

  it("takes a channel's fixed end and its centre", () => {
    expect(scaleOf(channelNamed("probability"), [{ values: [0.5], mask: [1] }]).reach).toBe(1);
    expect(scaleOf(channelNamed("is_weights"), [{ values: [0.5, 1.25], mask: [1, 1] }])).toMatchObject({ centre: 1, reach: 0.5 });
  });

  it("has no reach where nothing counts", () => {
    expect(scaleOf(RATIO, [])).toMatchObject({ reach: 0, counted: 0 });
    expect(quantile([], 0.96)).toBe(0);
  });
});

describe("step", () => {
  const scale = scaleOf(RATIO, [{ values: [1, -1], mask: [1, 1] }]);

  it("puts the sign on either side of the neutral middle and ends at the ends", () => {
    expect([-9, -1, -0.2, 0, 0.05, 0.2, 1, 9].map((v) => step(v, scale))).toEqual(["d0", "d0", "d4", "d5", "d5", "d6", "d10", "d10"]);
  });

  it("leaves unknown values unpainted and shows the infinite", () => {
    expect(step(NaN, scale)).toBe("none");
    expect(step(-Infinity, scale)).toBe("d0");
  });

  it("is neutral everywhere on a scale without reach", () => {
    expect(step(0, scaleOf(RATIO, []))).toBe("d5");
  });

  it("runs from the neutral end on sequential scales, downwards too", () => {
    const entropy = scaleOf(ENTROPY, [{ values: [2], mask: [1] }]);
    expect([-1, 0, 1, 2, 3].map((v) => step(v, entropy))).toEqual(["s0", "s0", "s3", "s5", "s5"]);
    const log = scaleOf(channelNamed("log_probs"), [{ values: [-4], mask: [1] }]);
    expect([0, -2, -4].map((v) => step(v, log))).toEqual(["s0", "s3", "s5"]);
  });
});
