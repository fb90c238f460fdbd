import { describe, expect, it } from "vitest";

import { type Branch, decided, formula } from "./formulas";
import { markup } from "../../mathml";

const branch = (name: string, value: number): Branch => ({ latex: name, name, value, state: "ties" });
const states = (...values: number[]) =>
  decided(values.map((value, n) => branch(["unclipped", "clipped", "dual clip"][n] ?? "", value))).map(({ state }) => state);

describe("the winning branch", () => {
  it("is the least", () => {
    expect(states(2.756, 2.718)).toEqual(["loses", "wins"]);
    expect(states(-3, -1.2)).toEqual(["wins", "loses"]);
  });

  it("is none where both are equal, rounding aside", () => {
    expect(states(1.2, 1.2)).toEqual(["ties", "ties"]);
    expect(states(1.2, 1.2 * (1 + 1e-14))).toEqual(["ties", "ties"]);
    expect(states(0, 0)).toEqual(["ties", "ties"]);
    expect(states(1.2, 1.2 * (1 + 1e-9))).toEqual(["wins", "loses"]);
  });

  it("is none without a token", () => {
    expect(states(NaN, NaN)).toEqual(["ties", "ties"]);
  });

  it("is the dual clip where that is above the least", () => {
    expect(states(-8, -1.2, -3)).toEqual(["loses", "loses", "wins"]);
    expect(states(-2, -1.2, -3)).toEqual(["wins", "loses", "loses"]);
    expect(states(-3, -1.2, -3)).toEqual(["ties", "ties", "ties"]);
    expect(states(-1, -1, -3)).toEqual(["ties", "ties", "loses"]);
  });
});

describe("formulas as hyper-parameters make them", () => {
  it("name the dual clip, the cap, the estimator and the ratio where they are on", () => {
    expect(formula("gate", { part: "ppo_clip" }, "", null)).not.toContain("\\max\\left");
    expect(formula("gate", { part: "ppo_clip", dual_clip: 3 }, "", null)).toContain("c\\,\\hat A_i");
    expect(formula("gate", { part: "ppo_clip", delta: 4 }, "", null)).toContain("\\min(\\rho,\\,\\delta)");
    expect(formula("constraint", { part: "kl", times_ratio: true }, "", null)).toContain("\\rho\\,");
    expect(formula("constraint", { part: "kl", estimator: "k2" }, "", null)).toContain("\\tfrac12");
    expect(formula("constraint", { part: "kl", reference: "old_log_probs" }, "", null)).toContain("\\pi_{\\mathrm{old}}");
    for (const estimator of ["k1", "k2", "k3", "abs", "k3+"]) {
      expect(markup(formula("constraint", { part: "kl", estimator, times_ratio: true, before_weight: true }, "", null)), estimator).not.toBeNull();
    }
  });

  it("are the registry's otherwise, also under names an object has", () => {
    expect(formula("gate", { part: "sigmoid" }, "x", null)).toBe("x");
    for (const name of ["constructor", "__proto__"]) expect(formula("aggregation", { part: name }, "x", null)).toBe("x");
  });
});
