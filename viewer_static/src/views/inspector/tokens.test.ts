import { describe, expect, it } from "vitest";

import { lineWidth } from "./tokens";

describe("the width of a line of tokens", () => {
  const tokens = (...strings: string[]) => ({ n: strings.length, ids: [], strings, mask: [], reason: null, channels: new Map() });

  it("grows with the text, more with wide characters, and is none where a line breaks", () => {
    expect(lineWidth(tokens())).toBe(0);
    expect(lineWidth(tokens("12", "3"))).toBeCloseTo(3 * 7.8 + 8);
    expect(lineWidth(tokens("你"))).toBeGreaterThan(lineWidth(tokens("a")));
    expect(lineWidth(tokens("a\n", "b"))).toBe(Infinity);
  });
});
