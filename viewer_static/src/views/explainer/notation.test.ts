import { describe, expect, it } from "vitest";

import { algorithms } from "../../objective";
import { gateTakesRho, primed, primesOf } from "./notation";

const grpo = algorithms.get("grpo")!;
const drGrpo = algorithms.get("dr_grpo")!;

describe("one notation through all slots", () => {
  it("primes every advantage of a formula, and nothing else", () => {
    expect(primed("\\min(\\rho\\,\\hat A_i, R_i')", 1)).toBe("\\min(\\rho\\,\\hat A_i', R_i')");
    expect(primed("\\hat A_{i,t}' = \\hat A_{i,t}-\\operatorname{mean}_m\\hat A", 2)).toBe("\\hat A_{i,t}'' = \\hat A_{i,t}''-\\operatorname{mean}_m\\hat A''");
    expect(primed("\\hat A_i'", 0)).toBe("\\hat A_i");
  });

  it("gives the gate the advantage that the last step before it defines", () => {
    expect(primesOf(grpo, "baseline", 0)).toEqual({ defined: 0, taken: 0 });
    expect(primesOf(grpo, "scale", 0)).toEqual({ defined: 1, taken: 0 });
    expect(primesOf(grpo, "gate", 0).taken).toBe(1);
    expect(primesOf(drGrpo, "gate", 0).taken).toBe(0);
    for (const spec of algorithms.values()) {
      const { scale, modulation } = spec.parts;
      const last = modulation.length ? primesOf(spec, "modulation", modulation.length - 1) : scale.length ? primesOf(spec, "scale", scale.length - 1) : primesOf(spec, "baseline", 0);
      expect(primesOf(spec, "gate", 0).taken, spec.id).toBe(last.defined);
    }
  });

  it("knows which gates speak of the ratio as ρ", () => {
    expect(gateTakesRho(grpo)).toBe(true);
    expect([...algorithms.values()].filter((spec) => !spec.display && !gateTakesRho(spec)).length).toBeGreaterThan(0);
  });
});
