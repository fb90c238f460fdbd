import { describe, expect, it } from "vitest";

import { channelsOf, floats, joinTokens, rolloutTokens, runsOf } from "./join";
import type { Columns } from "./segments";

function columns(data: Record<string, ArrayLike<unknown>>): Columns {
  const map = new Map(Object.entries(data));
  return { path: "t", rows: Math.max(...[...map.values()].map((c) => c.length)), columns: map };
}

const ROLLOUT = columns({
  rollout: [0, 0, 0, 0, 0],
  row: [4, 4, 7, 7, 7],
  ids: [10, 11, 12, 13, 14],
  strings: ["a", "b", "c", null, "e"],
  mask: [1, 1, 1, 0, 1],
  mask_reason: [0, 0, 0, 1, 0],
  old_log_probs: Float32Array.of(-1, -2, -3, NaN, -5),
});

describe("runsOf", () => {
  it("splits a range where rollout or row changes", () => {
    expect(runsOf([0, 0, 0, 1, 1], [4, 4, 5, 5, 5], null, [0, 5])).toEqual([
      { rollout: 0, row: 4, microBatch: -1, start: 0, end: 2 },
      { rollout: 0, row: 5, microBatch: -1, start: 2, end: 3 },
      { rollout: 1, row: 5, microBatch: -1, start: 3, end: 5 },
    ]);
  });

  it("stays inside the range of the index line and reads 64-bit integers", () => {
    expect(runsOf([0n, 0n, 0n], [1n, 1n, 2n], [0n, 0n, 0n], [1, 3])).toEqual([
      { rollout: 0, row: 1, microBatch: 0, start: 1, end: 2 },
      { rollout: 0, row: 2, microBatch: 0, start: 2, end: 3 },
    ]);
    expect(runsOf([0], [1], null, [0, 0])).toEqual([]);
  });

  it("tells the passes of one response apart, side by side too", () => {
    expect(runsOf([0, 0, 0, 0], [4, 4, 4, 4], [0, 0, 1, 1], [0, 4])).toEqual([
      { rollout: 0, row: 4, microBatch: 0, start: 0, end: 2 },
      { rollout: 0, row: 4, microBatch: 1, start: 2, end: 4 },
    ]);
  });
});

describe("floats", () => {
  it("views floats and converts the rest, missing values as NaN", () => {
    const column = Float32Array.of(1, 2, 3);
    expect(floats(column, 1, 3).buffer).toBe(column.buffer);
    expect([...floats([1, null, 3n], 0, 3)]).toEqual([1, NaN, 3]);
  });
});

describe("joinTokens", () => {
  const run = { rollout: 0, row: 7, microBatch: -1, start: 2, end: 5 };
  const tokens = rolloutTokens(ROLLOUT, run);

  it("takes the response's rows of every column", () => {
    expect(tokens).toMatchObject({ n: 3, ids: [12, 13, 14], strings: ["c", "", "e"], mask: [1, 0, 1], reason: [0, 1, 0] });
    expect([...(tokens.channels.get("old_log_probs") ?? [])]).toEqual([-3, NaN, -5]);
  });

  it("adds what the update measured, by position", () => {
    const update = columns({ update: [3, 3, 3], rollout: [0, 0, 0], row: [7, 7, 7], log_probs: Float32Array.of(-2.5, -4, -5) });
    const joined = joinTokens(tokens, channelsOf(update, { ...run, start: 0, end: 3 }), {});
    expect([...joined.channels.keys()]).toEqual(["old_log_probs", "log_probs"]);
    expect([...(joined.channels.get("log_probs") ?? [])]).toEqual([-2.5, -4, -5]);
    expect(tokens.channels.has("log_probs")).toBe(false);
  });

  it("lets an alias stand for a column that is not stored, and only then", () => {
    const measured = new Map([["log_probs", Float32Array.of(-1, -1, -1)]]);
    const bare = { ...tokens, channels: new Map<string, Float32Array>() };
    expect(joinTokens(bare, measured, { old_log_probs: "log_probs" }).channels.get("old_log_probs")).toBe(measured.get("log_probs"));
    expect(joinTokens(tokens, measured, { old_log_probs: "log_probs" }).channels.get("old_log_probs")?.[0]).toBe(-3);
    expect(joinTokens(bare, null, { old_log_probs: "log_probs" }).channels.size).toBe(0);
  });

  it("refuses to join different numbers of tokens", () => {
    const measured = new Map([["log_probs", Float32Array.of(-1, -1)]]);
    expect(() => joinTokens(tokens, measured, {})).toThrow("3 tokens in the rollout and 2 in the update");
  });
});
