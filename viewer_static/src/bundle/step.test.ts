import { describe, expect, it } from "vitest";

import { buildIndex } from "./index";
import type { Columns, SegmentReader, Table } from "./segments";
import { loadStep, trainedIn } from "./step";

const UNSAID = { algorithm: null, algorithm_notes: [], reward_weights: [] };

type Tables = Partial<Record<Table, Record<string, ArrayLike<unknown>>>>;

function reader(segments: Record<string, Tables>): SegmentReader {
  return {
    async read(segment, table): Promise<Columns | null> {
      const data = segments[segment]?.[table];
      if (!data) return null;
      const columns = new Map(Object.entries(data));
      return { path: `${segment}.${table}`, rows: [...columns.values()][0]?.length ?? 0, columns };
    },
  };
}

// One rollout of two groups with two responses each; group 1 was not kept. Update 0 trained on rows 0 and 3, update 1,
// in another segment, on rows 1 and 2.
const SEGMENTS: Record<string, Tables> = {
  "r0-000000": {
    responses: {
      rollout: [0, 0, 0, 0], row: [0, 1, 2, 3], group: [0, 0, 1, 1], prompt: ["p", "p", "q", "q"],
      length: [2, 1, 5, 5], counted: [2, 1, 5, 5], kept: [true, true, false, false],
      reward: Float32Array.of(0.5, 1, 0, 0), "reward_components.0": Float32Array.of(0, 1, 0, 0), advantages: Float32Array.of(-1, 1, 0, 0),
      "labels.uid": ["a", null, "b", "b"], "labels.max_global_steps": Float64Array.of(3, 4, NaN, 2 ** 40), "labels.__proto__": [1n, 2n, 3n, null],
    },
    rollout_tokens: {
      rollout: [0, 0, 0], row: [0, 0, 1], ids: [5, 6, 7], strings: ["x", "y", "z"], mask: [1, 1, 1],
      old_log_probs: Float32Array.of(-1, -2, -3),
    },
    update_responses: { rollout: [0, 0], row: [3, 0], micro_batch: [0, 0], log_ratio_sum: Float32Array.of(0, 0.25) },
    update_tokens: { rollout: [0, 0], row: [0, 0], micro_batch: [0, 0], log_probs: Float32Array.of(-1, -1.75) },
  },
  "r0-000001": {
    update_responses: { rollout: [0, 0], row: [1, 2], micro_batch: [0, 0], log_ratio_sum: Float32Array.of(0, 0) },
    update_tokens: { rollout: [0], row: [1], micro_batch: [0], log_probs: Float32Array.of(-3) },
  },
};

const INDEX = buildIndex(
  {
    index: [
      [
        { entry: "rollout", kind: "train", attempt: 0, rollout: 0, step: 1, segment: "r0-000000", responses: [0, 4], tokens: [0, 3], groups: 2, kept: [0], weight: 2 },
        { entry: "update", kind: "train", attempt: 0, update: 0, step: 1, rollouts: [0], segment: "r0-000000", responses: [0, 2], tokens: [0, 2] },
        { entry: "update", kind: "train", attempt: 0, update: 1, step: 2, rollouts: [0], segment: "r0-000001", responses: [0, 2], tokens: [0, 1] },
      ]
        .map((line) => `${JSON.stringify(line)}\n`)
        .join(""),
    ],
    metrics: [],
  },
  [{ attempt: 0, started: "", first_update: 0, status: "finished", ranks: null, ...UNSAID }],
);
const [FIRST] = INDEX.updates.train;
if (!FIRST) throw new Error("the index holds an update");

describe("loadStep", () => {
  it("has what the trainer says of a response, and nothing where it says nothing", async () => {
    const { groups } = await loadStep(FIRST, INDEX, reader(SEGMENTS));
    const labels = groups.flatMap((group) => group.responses.map((each) => [each.row, [...each.labels]]));
    expect(labels).toEqual([
      [1, [["max_global_steps", 4], ["__proto__", 2]]],
      [0, [["uid", "a"], ["max_global_steps", 3], ["__proto__", 1]]],
      [2, [["uid", "b"], ["__proto__", 3]]],
      [3, [["uid", "b"], ["max_global_steps", 2 ** 40]]],
    ]);
  });

  it("joins rollout and update, best response first, and marks what is not in the update", async () => {
    const step = await loadStep(FIRST, INDEX, reader(SEGMENTS));
    const [kept, dropped] = step.groups;
    expect(kept).toMatchObject({ key: "0.0", prompt: "p", kept: true, inUpdate: 1, mean: 0.75, flat: false });
    expect(kept?.std).toBeCloseTo(0.3536, 4);
    expect(kept?.responses.map((r) => [r.row, r.reward, r.passes[0]?.measured?.logRatioSum ?? null])).toEqual([[1, 1, null], [0, 0.5, 0.25]]);
    expect([...(kept?.responses[1]?.passes[0]?.tokens?.channels.get("log_probs") ?? [])]).toEqual([-1, -1.75]);
    expect(kept?.responses[0]?.passes[0]?.tokens?.channels.has("log_probs")).toBe(false);
    expect(kept?.responses[0]?.components).toEqual([1]);
    expect(dropped).toMatchObject({ key: "0.1", kept: false, weight: 2, flat: true, inUpdate: 1 });
    expect(dropped?.passes.every((p) => p.tokens === null)).toBe(true);
    expect([...step.channels].sort()).toEqual(["log_probs", "old_log_probs"]);
  });

  it("keeps both passes of a response that the update trained on twice", async () => {
    const twice = {
      ...SEGMENTS["r0-000000"],
      // Micro-batches in whatever order they come, rows of the same response side by side included.
      update_responses: { rollout: [0, 0], row: [0, 0], micro_batch: [1, 0], log_ratio_sum: Float32Array.of(0.5, 0.25) },
      update_tokens: {
        rollout: [0, 0, 0, 0], row: [0, 0, 0, 0], micro_batch: [1, 1, 0, 0], log_probs: Float32Array.of(-1, -1.5, -1, -1.75),
      },
    };
    const line = { ...FIRST, parts: FIRST.parts.map((part) => ({ ...part, tokens: [0, 4] as const })) };
    const step = await loadStep(line, INDEX, reader({ "r0-000000": twice }));
    const [group] = step.groups;
    expect(group).toMatchObject({ inUpdate: 1, mean: 0.75 });
    expect(group?.responses).toHaveLength(2);
    expect(
      group?.passes.map((p) => [p.key, p.number, p.measured?.microBatch, p.measured?.logRatioSum, p.tokens?.channels.get("log_probs")?.[1]]),
    ).toEqual([
      ["0.1", 0, undefined, undefined, undefined],
      ["0.0", 0, 0, 0.25, -1.75],
      ["0.0.1", 1, 1, 0.5, -1.5],
    ]);
  });

  it("names the file that is missing or too short", async () => {
    const { update_tokens: _, ...rest } = SEGMENTS["r0-000000"] ?? {};
    await expect(loadStep(FIRST, INDEX, reader({ "r0-000000": rest }))).rejects.toMatchObject({
      path: "segments/r0-000000.update_tokens.parquet",
      message: "it is missing",
    });
    const short = { ...SEGMENTS["r0-000000"], update_tokens: { rollout: [0], row: [0], log_probs: Float32Array.of(-1) } };
    await expect(loadStep(FIRST, INDEX, reader({ "r0-000000": short }))).rejects.toThrow("it has 1 rows, the index speaks of 2");
  });
});

describe("trainedIn", () => {
  it("finds the updates of every response of the rollout, and how far it had moved", async () => {
    const segments = reader(SEGMENTS);
    const { uses, whole } = await trainedIn(await loadStep(FIRST, INDEX, segments), INDEX, segments, true);
    const found = [...uses].map(([key, list]) => [key, list.map((use) => use.update)]);
    expect(Object.fromEntries(found)).toEqual({ "0:0.0": [0], "0:0.3": [0], "0:0.1": [1], "0:0.2": [1] });
    expect(uses.get("0:0.0")?.[0]?.logRatioSum).toBe(0.25);
    expect(whole).toBe(true);
  });

  it("reads no further file unless it is asked to, and says that it did not", async () => {
    const { uses, whole } = await trainedIn(await loadStep(FIRST, INDEX, reader(SEGMENTS)), INDEX, {
      read: (segment, name) => {
        if (segment !== "r0-000000") throw new Error("fetched");
        return reader(SEGMENTS).read(segment, name);
      },
    }, false);
    expect([...uses.keys()]).toEqual(["0:0.3", "0:0.0"]);
    expect(whole).toBe(false);
  });
});
