import { describe, expect, it } from "vitest";

import type { Pass } from "../bundle/step";
import { hardest } from "./hardest";
import type { Analysis } from "./types";

const pass = (key: string, mask: readonly number[]) => ({ key, tokens: { n: mask.length, mask } }) as unknown as Pass;
const analysed = (...pushes: [Pass, readonly number[]][]) =>
  ({ passes: new Map(pushes.map(([of, push]) => [of.key, { pass: of, push: Float64Array.from(push) }])) }) as unknown as Analysis;

describe("the token pushed hardest", () => {
  const [a, b] = [pass("0.0", [0, 1, 1]), pass("0.1", [1, 1, 0])];

  it("is one that counts, whichever way it is pushed", () => {
    expect(hardest([a, b], analysed([a, [9, 0.1, 0.2]], [b, [0.2, -0.3, 9]]))).toEqual({ pass: b, token: 1, alike: 1 });
  });

  it("is the first of those that differ by rounding alone", () => {
    expect(hardest([a, b], analysed([a, [0, 0.3, 0.1]], [b, [0.3 + 1e-15, -0.3, 0]]))).toEqual({ pass: a, token: 1, alike: 3 });
  });

  it("is the first that counts where none is pushed, or no push is known", () => {
    expect(hardest([a, b], analysed([a, [0, 0, 0]], [b, [0, 0, 0]]))).toEqual({ pass: a, token: 1, alike: 0 });
    expect(hardest([a, b], null)).toEqual({ pass: a, token: 1, alike: NaN });
    expect(hardest([a], analysed([{ ...a }, [0, 1, 2]]))).toEqual({ pass: a, token: 1, alike: NaN });
    expect(hardest([pass("0.2", [0])], null)).toBeNull();
  });
});
