import { describe, expect, it } from "vitest";

import { buildIndex } from "./index";
import { parseManifest } from "./manifest";
import { incomplete, missingRanks, trained } from "./missing";

function manifest(more: object = {}) {
  const attempts = [{ attempt: 0 }, { attempt: 1, first_update: 2, ranks: 1 }];
  return parseManifest(JSON.stringify({ format: "unipo-bundle", version: "1.0", ranks: 3, attempts, ...more }));
}

/** Updates by rank, each with its metrics. */
function index(...ranks: number[][]) {
  const text = (entry: string, updates: number[]) =>
    updates.map((update) => `${JSON.stringify({ entry, kind: "train", attempt: 0, update, step: 1, captured: true })}\n`).join("");
  return buildIndex({ index: ranks.map((u) => text("update", u)), metrics: ranks.map((u) => text("metrics", u)) }, []);
}

describe("missing ranks", () => {
  it("are those of the attempt that wrote nothing", () => {
    expect(missingRanks(manifest(), 0, [0, 2])).toEqual([1]);
    expect(missingRanks(manifest(), 1, [0])).toEqual([]);
  });

  it("are counted over updates", () => {
    expect(incomplete(manifest(), index([0, 1], [0], [0]).updates.train)).toEqual({ updates: 1, ranks: [1, 2] });
    expect(incomplete(manifest(), index([0], [0], [0]).updates.train)).toEqual({ updates: 0, ranks: [] });
  });
});

describe("trained", () => {
  const lost = { lost: { updates: 4 } };

  it("counts updates of which nothing is there", () => {
    expect(trained(manifest({ ranks: 1, ...lost }), index([0, 1, 2, 3]))).toBe(8);
    expect(trained(manifest({ ranks: 1, header: { totalSteps: 6 }, ...lost }), index([0, 1, 2, 3]))).toBe(6);
  });

  it("does not count again what another rank has", () => {
    expect(trained(manifest({ ranks: 2, ...lost }), index([0, 1, 2, 3, 4, 5], [0, 1]))).toBe(6);
  });
});
