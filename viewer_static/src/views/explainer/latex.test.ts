import { describe, expect, it } from "vitest";

import { annotate, sides, statements } from "./latex";

const mark = (symbol: string, outer = false) => ({ symbol, how: "under" as const, outer });

describe("numbers on the symbols of a formula", () => {
  it("marks a symbol that stands by itself, and no longer one that begins like it", () => {
    const { latex, found } = annotate("\\rho + \\rho_{\\min}", [mark("\\rho")]);
    expect(latex).toBe("\\underset{\\text{⦃0u⦄}}{\\rho} + \\rho_{\\min}");
    expect(found).toEqual(new Set([0]));
    expect(annotate("\\hat A_i' = \\hat A_i", [mark("\\hat A_i")]).latex).toBe("\\hat A_i' = \\underset{\\text{⦃0u⦄}}{\\hat A_i}");
  });

  it("passes over indices, exponents and text", () => {
    for (const latex of ["x_{G}", "x^G", "\\text{G}", "\\operatorname{G}", "\\sum_{j\\in G} x", "\\Gamma"]) {
      expect(annotate(latex, [mark("G")]).found.size, latex).toBe(0);
    }
  });

  it("takes the longest symbol, and marks those inside an outer one without a number", () => {
    const { latex } = annotate("\\min(\\rho\\,A, x)", [mark("\\rho"), mark("\\rho\\,A", true)]);
    expect(latex).toBe("\\min(\\underset{\\text{⦃1u⦄}}{\\underset{\\text{⦃0b⦄}}{\\rho}\\,A}, x)");
  });

  it("does not hang or throw on what is no LaTeX", () => {
    for (const latex of ["{", "}", "\\", "_", "x_", "^{", "\\text{", "\\text"]) expect(() => annotate(latex, [mark("x")])).not.toThrow();
  });
});

describe("statements of a formula", () => {
  it("are apart where a wide space is in no group, and together again the formula", () => {
    const gae = "\\hat A_t = \\delta_t,\\qquad \\delta_t = r_t";
    expect(statements(gae)).toEqual(["\\hat A_t = \\delta_t,", " \\delta_t = r_t"]);
    for (const one of ["x", "", "\\begin{cases}a\\qquad b\\end{cases}", "\\left(a\\qquad b\\right)", "{a\\qquad b}", "\\qquadx", "}\\qquad b", "\\"]) {
      expect(statements(one)).toEqual([one]);
    }
  });
});

describe("sides of a definition", () => {
  it("splits at the first = that is in no group", () => {
    expect(sides("\\hat A_i = R_i - \\mu_g,\\qquad \\mu_g = x")).toEqual(["\\hat A_i ", "= R_i - \\mu_g,\\qquad \\mu_g = x"]);
    expect(sides("m_t \\leftarrow m_t u")).toEqual(["m_t ", "\\leftarrow m_t u"]);
    expect(sides("-f(s),\\qquad s = x")).toEqual(["", "-f(s),\\qquad s = x"]);
    expect(sides("\\mathbf 1[t=T]")).toEqual(["", "\\mathbf 1[t=T]"]);
  });
});
