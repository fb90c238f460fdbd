import { describe, expect, it } from "vitest";

import { algorithmName, change, count, exact, fixed, integer, list, number, percent, probability, short, shortSigned, signed, span } from "./format";

describe("numbers", () => {
  it("have about four digits, a real minus and few exponents", () => {
    expect([0, 1, -0.5, 12.3456, 1234.5, -0.012345, 1e-5, 2.5e7].map((v) => number(v))).toEqual([
      "0", "1.000", "−0.5000", "12.35", "1235", "−0.0123", "1.00e−5", "2.50e7",
    ]);
  });

  it("say where there is none", () => {
    expect([NaN, null, undefined, Infinity, -Infinity].map((v) => number(v))).toEqual(["–", "–", "–", "∞", "−∞"]);
    expect(fixed(NaN, 2)).toBe("–");
    expect(percent(undefined)).toBe("–");
  });

  it("carry a plus where the sign matters", () => {
    expect([0.25, 0, -0.25].map((v) => signed(v))).toEqual(["+0.2500", "0", "−0.2500"]);
    expect([fixed(-0.25, 2), fixed(-0.001, 2), fixed(-0.4, 0), fixed(-10, 0)]).toEqual(["−0.25", "0.00", "0", "−10"]);
    expect(percent(0.125)).toBe("12.5 %");
  });

  it("leave out zeros that say nothing", () => {
    expect([0.2, 1.28, 1, 0, 100, 0.0125, -0.5, 1234.5, 1e-7, -1e-7, 2.5e7].map((v) => short(v))).toEqual([
      "0.2", "1.28", "1", "0", "100", "0.0125", "−0.5", "1235", "1e−7", "−1e−7", "2.5e7",
    ]);
    expect([NaN, Infinity, -Infinity].map((v) => short(v))).toEqual(["–", "∞", "−∞"]);
    expect([0.123456, -12.3456].map((v) => short(v, 3))).toEqual(["0.123", "−12.3"]);
    expect([0.2, 0, -0.2].map((v) => shortSigned(v))).toEqual(["+0.2", "0", "−0.2"]);
  });

  it("have nine digits where losses are compared", () => {
    expect([0.123456789012, -0.5, -1.5e-8].map(exact)).toEqual(["0.123456789", "−0.500000000", "−1.50000000e−8"]);
  });

  it("show small probabilities with more digits", () => {
    expect([0.5, 0.0004, 1].map(probability)).toEqual(["0.500", "4.0e−4", "1.000"]);
  });
});

describe("words", () => {
  it("say how a probability changed", () => {
    expect(change(0)).toBe("Exactly as likely as when it was sampled.");
    expect(change(Math.log(1.22))).toBe("22 % more likely now than when it was sampled.");
    expect(change(Math.log(0.965))).toBe("3.5 % less likely now than when it was sampled.");
    expect(change(Math.log(3))).toBe("3.0 times as likely now as when it was sampled.");
    expect(change(1e-5)).toBe("As good as unchanged since it was sampled.");
    expect(change(NaN)).toBe("");
  });

  it("a span of time", () => {
    expect([611, 7199, 7200, 2 * 86400].map(span)).toEqual(["10 min", "119 min", "2 h", "2 days"]);
  });

  it("count and list", () => {
    expect([count(1, "update"), count(12000, "update"), count(2, "entry", "entries")]).toEqual(["1 update", "12\u2009000 updates", "2 entries"]);
    expect(integer(999)).toBe("999");
    expect([list([3]), list([3, 4]), list([3, 4, 5])]).toEqual(["3", "3 and 4", "3, 4 and 5"]);
    expect(["dapo", "dr_grpo", "My algorithm"].map(algorithmName)).toEqual(["DAPO", "Dr. GRPO", "My algorithm"]);
  });
});
