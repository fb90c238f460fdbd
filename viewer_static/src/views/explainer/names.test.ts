import { describe, expect, it } from "vitest";

import { visible } from "./names";

describe("a token in a line", () => {
  it("shows what cannot be seen", () => {
    expect(["", "a\n\tb", "   ", " a"].map(visible)).toEqual(["end", "a↵→b", "␣␣␣", " a"]);
    expect(["\u0000", "\u061c", "\u00ad", "\u0085", "\u202e", "\ufeff"].map(visible)).toEqual(Array(6).fill("�"));
  });

  it("keeps emoji that are made of several", () => {
    expect(visible("\u{1f469}\u200d\u{1f4bb}")).toBe("\u{1f469}\u200d\u{1f4bb}");
  });

  it("is cut where it is endless, and no character is halved", () => {
    expect(visible("x".repeat(60))).toBe("x".repeat(60));
    expect(visible("x".repeat(61))).toBe(`${"x".repeat(59)}…`);
    expect(visible(`x${"\u{1f600}".repeat(99)}`)).toBe(`x${"\u{1f600}".repeat(58)}…`);
  });
});
