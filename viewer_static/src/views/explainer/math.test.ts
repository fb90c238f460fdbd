import { describe, expect, it } from "vitest";

import { markup } from "../../mathml";

describe("LaTeX of strangers", () => {
  it("is refused where it links, fetches, styles or never ends", () => {
    for (const latex of [
      "\\href{javascript:alert(1)}{x}",
      "\\url{javascript:alert(1)}",
      "\\includegraphics{https://example.org/x.png}",
      "\\class{tok}{x}",
      "\\style{position:fixed}{x}",
      "\\id{app}{x}",
      "\\data{x=1}{x}",
      "\\def\\a{\\a\\a}\\a",
      "\\def\\a{xxxxxxxxxx}\\def\\b{\\a\\a\\a\\a\\a\\a\\a\\a\\a\\a}".concat("\\b".repeat(900)),
      "x".repeat(5000),
    ]) {
      expect(markup(latex), latex.slice(0, 40)).toBeNull();
    }
  });

  it("is drawn as text where it is text", () => {
    expect(markup("\\text{<script>alert(1)</script>}")).toContain("&lt;script&gt;");
    expect(markup("\\text{<img src=x onerror=alert(1)>}")).not.toContain("<img");
  });

  it("is no larger than a formula", () => {
    expect(markup("\\rule{9999em}{9999em}")).toContain('width="12em"');
  });

  it("keeps macros of one formula out of the next", () => {
    expect(markup("\\gdef\\leak{1}\\leak")).not.toBeNull();
    expect(markup("\\leak")).toBeNull();
  });
});

describe("formulas of the registry", () => {
  it("can all be read", () => {
    const files = import.meta.glob<Record<string, { latex: string; parameters?: Record<string, { symbol?: string }> }>>(
      "../../../../unipo_hooks/objective/registry/parts/*.json",
      { eager: true, import: "default" },
    );
    let count = 0;
    for (const [file, parts] of Object.entries(files)) {
      for (const [name, part] of Object.entries(parts)) {
        expect(markup(part.latex), `${file} ${name}`).not.toBeNull();
        for (const { symbol } of Object.values(part.parameters ?? {})) if (symbol) expect(markup(symbol), symbol).not.toBeNull();
        count++;
      }
    }
    expect(count).toBeGreaterThan(90);
  });
});
