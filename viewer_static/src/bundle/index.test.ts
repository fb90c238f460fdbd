import { describe, expect, it } from "vitest";

import { buildIndex, rolloutKey } from "./index";
import { parseLines } from "./lines";
import type { Attempt } from "./types";

const UNSAID = { algorithm: null, algorithm_notes: [], reward_weights: [] };

const ONCE: Attempt[] = [{ attempt: 0, started: "", first_update: 0, status: "finished", ranks: null, ...UNSAID }];

function lines(...objects: object[]): string {
  return objects.map((object) => `${JSON.stringify(object)}\n`).join("");
}

function rollout(number: number, more: object = {}) {
  return {
    entry: "rollout", kind: "train", attempt: 0, rollout: number, step: number, time: 0, segment: "r0-000000",
    responses: [0, 4], tokens: [0, 9], groups: 2, ...more,
  };
}

function update(number: number, more: object = {}) {
  return {
    entry: "update", kind: "train", attempt: 0, update: number, step: number + 1, time: 0, rollouts: [0],
    is_first_step_after_rollout_phase: true, segment: "r0-000000", responses: [0, 4], tokens: [0, 9], ...more,
  };
}

function metrics(number: number, more: object = {}) {
  return {
    entry: "metrics", kind: "train", attempt: 0, update: number, step: number + 1, time: 0, rollouts: [0],
    is_first_step_after_rollout_phase: true, captured: true, sums: { reward: [2, 4, 2] }, scalars: {}, ...more,
  };
}

describe("parseLines", () => {
  it("leaves out an unterminated last line without a word", () => {
    const faults: string[] = [];
    expect(parseLines('{"a":1}\n{"a":2', "index.r0.jsonl", faults)).toEqual([{ a: 1 }]);
    expect(parseLines('{"a":1}', "index.r0.jsonl", faults)).toEqual([]);
    expect(faults).toEqual([]);
  });

  it("names a damaged line and goes on", () => {
    const faults: string[] = [];
    expect(parseLines('{"a":1}\nnot json\n\n{"a":3}\n', "index.r0.jsonl", faults)).toEqual([{ a: 1 }, { a: 3 }]);
    expect(faults).toEqual(["index.r0.jsonl, line 2, is not JSON and is left out."]);
  });
});

describe("buildIndex", () => {
  it("orders updates, keeps evaluations apart and ignores unknown entries and fields", () => {
    const text = lines(rollout(0, { later: 1 }), update(1), update(0), { entry: "reconcile" }, update(0, { kind: "eval" }));
    const index = buildIndex({ index: [text], metrics: [] }, ONCE);
    expect(index.updates.train.map((u) => u.update)).toEqual([0, 1]);
    expect(index.updates.eval.map((u) => u.update)).toEqual([0]);
    expect(index.rollouts.get(rolloutKey("train", 0, 0))).toMatchObject([{ rank: 0, kept: null, weight: 1, aliases: {} }]);
  });

  it("merges the ranks of an update", () => {
    const index = buildIndex(
      {
        index: [lines(update(0)), lines(update(0, { rollouts: [0, 1], segment: "r1-000000" }))],
        metrics: [lines(metrics(0)), lines(metrics(0, { sums: { reward: [6, 4, 9] } }))],
      },
      ONCE,
    );
    expect(index.updates.train).toHaveLength(1);
    expect(index.updates.train[0]).toMatchObject({ rollouts: [0, 1], parts: [{ rank: 0 }, { rank: 1 }] });
    expect(index.metrics.train[0]?.values.get("reward")).toBe(1);
  });

  it("adds what the trainer logged, below what was measured", () => {
    const log = { entry: "log", kind: "train", attempt: 0, update: 0, step: 1, scalars: { grad_norm: 2.5, loss: null, reward: 9 } };
    const index = buildIndex({ index: [], metrics: [lines(metrics(0), log, { ...log, update: 7 })] }, ONCE);
    expect(Object.fromEntries(index.metrics.train[0]?.values ?? [])).toMatchObject({ grad_norm: 2.5, reward: 0.5 });
    expect(index.metrics.train).toHaveLength(1);
  });

  it("takes the unbiased spread of reward and advantage from their sums, over all ranks", () => {
    const rank = (values: number[]) => [values.reduce((a, b) => a + b, 0), values.length, values.reduce((a, b) => a + b * b, 0)];
    const logged = { entry: "log", kind: "train", attempt: 0, update: 0, step: 1, scalars: { reward_std: 9 } };
    const texts = [
      lines(metrics(0, { sums: { reward: rank([1, 2]), advantage_mean: rank([1]) } }), logged),
      lines(metrics(0, { sums: { reward: rank([4, 7]), advantage_mean: rank([]) } })),
    ];
    const values = buildIndex({ index: [], metrics: texts }, ONCE).metrics.train[0]?.values;
    expect(values?.get("reward_std")).toBeCloseTo(Math.sqrt(21 / 3), 12); // of 1, 2, 4, 7
    expect(values?.has("advantage_std")).toBe(false); // one value has no spread
  });

  it("knows when the newest line was written", () => {
    const files = { index: [lines(update(0, { time: 5 })), ""], metrics: [lines(metrics(0, { time: 7 }), { entry: "log" })] };
    expect(buildIndex(files, ONCE).newest).toBe(7);
    expect(buildIndex({ index: [], metrics: [] }, ONCE).newest).toBe(0);
  });

  it("takes metric names as data, whatever they are", () => {
    const text = '{"entry":"metrics","kind":"train","attempt":0,"update":0,"step":1,"rollouts":[],"sums":{"__proto__":[1,2,1]},"scalars":{}}\n';
    const index = buildIndex({ index: [], metrics: [text] }, ONCE);
    expect(index.metrics.train[0]?.values.get("__proto__")).toBe(0.5);
  });
});

describe("superseded attempts", () => {
  const attempts: Attempt[] = [
    { attempt: 0, started: "", first_update: 0, status: "interrupted", ranks: null, ...UNSAID },
    { attempt: 1, started: "", first_update: 2, status: "finished", ranks: null, ...UNSAID },
  ];
  const first = [0, 1, 2, 3].map((u) => update(u, { rollouts: [u] }));
  const second = [2, 3, 4].map((u) => update(u, { attempt: 1, rollouts: [u] }));
  const measured = [...[0, 1, 2, 3].map((u) => metrics(u)), ...[2, 3, 4].map((u) => metrics(u, { attempt: 1, sums: { reward: [4, 4, 4] } }))];

  it("hides what a later attempt did again, metrics too", () => {
    const index = buildIndex({ index: [lines(...first, ...second)], metrics: [lines(...measured)] }, attempts);
    expect(index.updates.train.map((u) => [u.update, u.attempt])).toEqual([[0, 0], [1, 0], [2, 1], [3, 1], [4, 1]]);
    expect(index.metrics.train.map((m) => m.values.get("reward"))).toEqual([0.5, 0.5, 1, 1, 1]);
    expect(index.superseded).toBe(2);
  });

  it("hides the end of an attempt as soon as the next one has started", () => {
    const index = buildIndex({ index: [lines(...first)], metrics: [lines(...measured.slice(0, 4))] }, attempts);
    expect(index.updates.train.map((u) => u.update)).toEqual([0, 1]);
  });

  it("counts evaluations by the trainer's step", () => {
    const evaluations = [
      update(0, { kind: "eval", step: 2 }),
      update(1, { kind: "eval", step: 4 }),
      update(1, { kind: "eval", step: 4, attempt: 1 }),
    ];
    const index = buildIndex({ index: [lines(...evaluations)], metrics: [lines(...measured)] }, attempts);
    expect(index.updates.eval.map((u) => [u.update, u.attempt])).toEqual([[0, 0], [1, 1]]);
  });

  it("keeps rollouts of two attempts apart", () => {
    const index = buildIndex({ index: [lines(rollout(1), rollout(1, { attempt: 1 }))], metrics: [] }, attempts);
    expect(index.rollouts.size).toBe(2);
  });
});
