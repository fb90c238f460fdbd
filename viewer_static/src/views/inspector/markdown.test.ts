import { describe, expect, it, vi } from "vitest";

import { type Block, type Inline, inline, parse } from "./markdown";

const kinds = (children: Inline[]): unknown[] =>
  children.map((c) => (c.kind === "strong" || c.kind === "em" ? [c.kind, kinds(c.children)] : c.kind === "math" ? `$${c.tex}$` : c.kind === "code" ? `\`${c.text}\`` : c.text));
const shape = (blocks: Block[]) => blocks.map((b) => [b.kind, b.kind === "fence" ? b.text : kinds(b.children)]);

describe("inline text", () => {
  it("knows code, bold, italic, and math in four ways", () => {
    expect(kinds(inline("a **b** `d*` $x_1$ \\(y\\) \\[z\\] $$w$$", 0))).toEqual([
      "a ", ["strong", ["b"]], " ", "`d*`", " ", "$x_1$", " ", "$y$", " ", "$z$", " ", "$w$",
    ]);
    expect(kinds(inline("*a **b** c*", 0))).toEqual([["em", ["a ", ["strong", ["b"]], " c"]]]);
    expect(kinds(inline("__x__ and _y_", 0))).toEqual([["strong", ["x"]], " and ", ["em", ["y"]]]);
  });

  it("leaves prices, names and what is not closed alone", () => {
    for (const text of ["It costs $5 and $6.", "snake_case_name", "2 * 3 * 4", "a ** b", "`open", "\\(open", "$ x $"]) {
      expect(kinds(inline(text, 0))).toEqual([text]);
    }
  });

  it("says which characters a leaf is", () => {
    const text = "a **bold** and `code` and $x$ end";
    const leaves = inline(text, 100).flatMap((c) => (c.kind === "strong" || c.kind === "em" ? c.children : [c]));
    for (const leaf of leaves) {
      if (leaf.kind === "text") expect(text.slice(leaf.start - 100, leaf.end - 100)).toBe(leaf.text);
      if (leaf.kind === "math") expect(text.slice(leaf.start - 100, leaf.end - 100)).toBe(`$${leaf.tex}$`);
    }
  });
});

describe("blocks", () => {
  it("are headings, lists, fences and paragraphs", () => {
    expect(shape(parse("# One\ntext\nmore\n\n- a\n  2. b\n```py\nx = 1\n```\nend"))).toEqual([
      ["heading", ["One"]],
      ["paragraph", ["text\nmore"]],
      ["item", ["a"]],
      ["item", ["b"]],
      ["fence", "x = 1"],
      ["paragraph", ["end"]],
    ]);
  });

  it("keep math on display together, over blank lines too", () => {
    expect(shape(parse("So\n\\[\na\n\nb\n\\]\nend"))).toEqual([["paragraph", ["So\n", "$\na\n\nb\n$", "\nend"]]]);
    expect(shape(parse("```\nnever closed"))).toEqual([["fence", "never closed"]]);
    expect(shape(parse(""))).toEqual([]);
  });

  it("take work that grows with the text alone", () => {
    const pieces = [
      "*", "_", "`", "$", "\\(", "\\[", "**a ", "_a", "*a**", "# ", "- ", "\\[\n", "\\[a\n", "$$\n", "```\n", "`\n", "$a\n", "*a\n\n",
    ];
    for (const piece of pieces) {
      const [small, large] = [searched(piece.repeat(500)), searched(piece.repeat(4000))];
      expect.soft(large / Math.max(small, 500), piece).toBeLessThan(12);
    }
  });
});

/** Characters that are looked through while a text is read: what is searched for a mark, and what is copied. */
function searched(text: string): number {
  let characters = 0;
  const { indexOf, includes, slice } = String.prototype;
  const spies = [
    vi.spyOn(String.prototype, "indexOf").mockImplementation(function (this: string, mark, from = 0) {
      const at = indexOf.call(this, mark, from);
      characters += (at < 0 ? this.length : at) - from + 1;
      return at;
    }),
    vi.spyOn(String.prototype, "includes").mockImplementation(function (this: string, mark, from) {
      characters += this.length;
      return includes.call(this, mark, from);
    }),
    vi.spyOn(String.prototype, "slice").mockImplementation(function (this: string, from, to) {
      const part = slice.call(this, from, to);
      characters += part.length;
      return part;
    }),
  ];
  try {
    parse(text);
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
  return characters;
}
