import { describe, expect, it } from "vitest";

import type { Analysis, PassResult } from "../../analysis/types";
import type { Pass, StepGroup, StepResponse } from "../../bundle/step";
import type { AlgorithmSpec } from "../../objective/types";
import { arrange, totals } from "./arrange";
import { derivation } from "./derivation";
import { findText } from "./find";
import { LETTERS, marksOf } from "./marks";
import { picks } from "./queries";
import { advantageOf, channelValues, noSignal, relative, startOf } from "./values";
import { verdict } from "./verdict";

const NONE = new Float64Array(4);

function pass(key: string, of: Partial<StepResponse>, strings = ["a", "b", "c", "d"]): Pass {
  const tokens = {
    n: 4, ids: [0, 0, 0, 0], strings, mask: [1, 1, 1, 0], reason: [0, 0, 0, 1],
    channels: new Map([["log_probs", Float32Array.of(-1, -2, -3, -4)], ["old_log_probs", Float32Array.of(-1.7, -2, -2.3, -4)]]),
  };
  const response: StepResponse = {
    key, row: Number(key.split(".")[1]), length: 4, counted: 3, reward: 1, components: [], advantage: 1, isWeight: NaN, labels: new Map(), trained: true, passes: [], ...of,
  };
  const made: Pass = { key, response, number: 0, measured: { microBatch: 0, logRatioSum: 0, tokenKlSum: NaN }, tokens };
  response.passes = [made];
  return made;
}

function result(of: Pass, changes: Partial<PassResult>): PassResult {
  return {
    pass: of, advantages: Float64Array.of(1, 1, 1, 0), ratio: Float64Array.of(2, 1, 0.5, 1), low: NONE.map(() => 0.8), high: NONE.map(() => 1.2),
    tokenObjective: NONE, policyWeight: NONE, constraintWeight: NONE, gradientWeight: NONE, push: NONE,
    clipped: Uint8Array.of(2, 0, 0, 0), mask: NONE.map(() => 1), weight: NONE.map(() => 1), aggregation: NONE.map(() => 0.25), penalties: [], ...changes,
  };
}

function analysed(results: PassResult[], own = true): Analysis {
  const parts = { ratio: { part: "token" }, gate: { part: "ppo_clip" } };
  return {
    own, missing: "", spec: { parts, mixture: [] } as unknown as AlgorithmSpec, passes: new Map(results.map((r) => [r.pass.key, r])),
  } as unknown as Analysis;
}

const group = (passes: Pass[], flat = false) => ({ flat, passes, responses: passes.map((p) => p.response) }) as unknown as StepGroup;

describe("values", () => {
  const one = pass("0.0", {});

  it("are those of the analysis where they are computed, and only for the very pass", () => {
    const analysis = analysed([result(one, { push: Float64Array.of(1, 2, 3, 0) })]);
    expect(Array.from(channelValues(one, "push", analysis) ?? [])).toEqual([1, 2, 3, 0]);
    expect(channelValues({ ...one }, "push", analysis)).toBeNull();
    expect(channelValues(one, "push")).toBeNull();
  });

  it("say where walking starts: at the hardest push, else at the first token", () => {
    const other = pass("0.1", {});
    const of = result(one, { push: Float64Array.of(0.1, -0.3, 0.2, 9) });
    expect(startOf([other, one], analysed([of]))).toEqual({ pass: "0.0", token: 1 });
    expect(startOf([other], null)).toEqual({ pass: "0.1", token: 0 });
    expect(startOf([{ ...one, tokens: one.tokens && { ...one.tokens, mask: [0, 0, 0, 0] } }], null)).toEqual({ pass: "0.0", token: 0 });
    expect(startOf([], null)).toBeNull();
  });

  it("take a what-if's advantages, and the trainer's own otherwise", () => {
    const of = result(one, { advantages: Float64Array.of(5, 5, 5, 0) });
    expect(advantageOf(one, analysed([of]))).toBe(1);
    expect(advantageOf(one, analysed([of], false))).toBe(5);
    expect(channelValues(one, "advantages", analysed([of], false))?.[1]).toBe(5);
    expect(channelValues(one, "advantages", analysed([of]))?.[1]).toBe(1);
  });

  it("relative to the response are about the mean of what counts", () => {
    expect([...relative([1, 2, 6, 100], [1, 1, 1, 0])]).toEqual([-2, -1, 3, 97]);
    expect(relative([1], [0])[0]).toBeNaN();
  });
});

describe("a group without signal", () => {
  it("has equal rewards and no advantage that says otherwise", () => {
    const [zero, some] = [pass("0.0", { advantage: 1e-6 }), pass("0.1", { advantage: 0.5 })];
    expect(noSignal(group([zero], true), null)).toBe(true);
    expect(noSignal(group([zero], false), null)).toBe(false);
    expect(noSignal(group([zero, some], true), null)).toBe(false);
    expect(noSignal(group([pass("0.0", { advantage: NaN })], true), null)).toBe(true);
  });
});

describe("order and filter", () => {
  const passes = [pass("0.2", { reward: 3, length: 4 }), pass("0.0", { reward: 2, length: 9, advantage: -1 }), pass("0.1", { reward: 1, length: 1, advantage: NaN, trained: false })];
  const [a, b, c] = passes as [Pass, Pass, Pass];
  const analysis = analysed([result(a, { push: Float64Array.of(1, 0, 0, 9), clipped: new Uint8Array(4) }), result(b, { push: Float64Array.of(2, 0, 0, 0) }), result(c, {})]);
  const keys = (...of: Parameters<typeof arrange> extends [unknown, ...infer R] ? R : never) => arrange(group(passes), ...of).map((r) => r.key);

  it("sorts, what is not known last", () => {
    expect(keys("reward", "all", analysis, new Map())).toEqual(["0.2", "0.0", "0.1"]);
    expect(keys("order", "all", analysis, new Map())).toEqual(["0.0", "0.1", "0.2"]);
    expect(keys("length", "all", analysis, new Map())).toEqual(["0.0", "0.2", "0.1"]);
    expect(keys("push", "all", analysis, new Map())).toEqual(["0.0", "0.2", "0.1"]);
    expect(keys("clipped", "all", null, new Map())).toEqual(["0.2", "0.0", "0.1"]);
  });

  it("filters", () => {
    expect(keys("reward", "trained", analysis, new Map())).toEqual(["0.2", "0.0"]);
    expect(keys("reward", "clipped", analysis, new Map())).toEqual(["0.0", "0.1"]);
    expect(keys("reward", "negative", analysis, new Map())).toEqual(["0.0"]);
    expect(keys("reward", "changed", analysis, new Map([["0.1", [{ pass: "0.1", token: 0, what: "sign", before: 1, after: -1 }]]]))).toEqual(["0.1"]);
  });

  it("sums over tokens that count", () => {
    expect(totals(a.response, analysis)).toEqual({ push: 1, clipped: 0 });
    expect(totals(b.response, analysis).clipped).toBeCloseTo(1 / 3);
  });
});

describe("picking", () => {
  const one = pass("0.0", {});
  const analysis = analysed([result(one, {})]);
  const all = (brush: Parameters<typeof picks>[0]) => [0, 1, 2, 3].filter(picks(brush, one, analysis) ?? (() => false));

  it("is by a range of tokens that count, by clipping and its sign, by the mask", () => {
    expect(all({ channel: "log_probs", low: -Infinity, high: -2 })).toEqual([1, 2]);
    expect(all({ channel: "abs_log_ratio", low: 0.5, high: Infinity })).toEqual([0, 2]);
    expect(all({ channel: "clipped_positive", low: 1, high: 1 })).toEqual([0]);
    expect(all({ channel: "clipped_negative", low: 1, high: 1 })).toEqual([]);
    expect(all({ channel: "masked", low: 1, high: 1 })).toEqual([3]);
    expect(picks({ channel: "nonsense", low: 0, high: 1 }, one, null)).toBeNull();
  });

  it("marks tokens beside their colour", () => {
    const marks = marksOf(4, result(one, { clipped: Uint8Array.of(2, 7, 0, 0) }), (i) => i > 0, [[2, 4]], [{ pass: "0.0", token: 3, what: "sign", before: 1, after: -1 }]);
    expect([...marks].map((m) => LETTERS[m])).toEqual(["c o", "k", "f", "f w"]);
  });
});

describe("finding text", () => {
  const find = (strings: string[], text: string) => findText({ ...(pass("0.0", {}, strings).tokens as NonNullable<Pass["tokens"]>), n: strings.length }, text);

  it("is over token borders, whatever the case, and takes the text literally", () => {
    expect(find(["The", " an", "swer", " is", " ans"], "Answer")).toEqual([[1, 3]]);
    expect(find(["a.b", "a+b"], "a+")).toEqual([[1, 2]]);
    expect(find(["", "x", "", "x"], "xx")).toEqual([[1, 4]]);
    expect(find(["aaa", "a"], "aa")).toEqual([[0, 1], [0, 2]]);
    expect(find(["a"], "")).toEqual([]);
  });
});

describe("what is said of a token", () => {
  const one = pass("0.0", {});
  const of = { counts: true, reason: 0, measured: true, fresh: false, logRatio: Math.log(1.22), index: 0, ratioOf: "" as const, evaluation: false };

  it("names the gate's side and what it means", () => {
    const words = verdict({ ...of, result: result(one, { ratio: Float64Array.of(1.22, 1, 1, 1) }) });
    const whole = verdict({ ...of, ratioOf: "whole response", result: result(one, { ratio: Float64Array.of(1.0007, 1, 1, 1) }) });
    expect(whole).toBe("Clipped: the ratio of its whole response, 1.0007, is above the range, so the policy term pushes no further.");
    expect(words).toBe("Clipped: above the range, whose upper end is 1.20; already 22 % more likely than when sampled, so the policy term pushes no further.");
    expect(verdict({ ...of, result: result(one, { clipped: Uint8Array.of(7, 0, 0, 0) }) })).toMatch(/^Capped from above: .* still pushed\.$/);
    expect(verdict({ ...of, result: result(one, { constraintWeight: Float64Array.of(0.1, 0, 0, 0) }) })).toMatch(/A constraint still makes it less likely\.$/);
  });

  it("says why a token does not count, and which way one that does is pushed", () => {
    expect(verdict({ ...of, counts: false, reason: 1, result: null })).toBe("Does not count in the loss: written by a tool or environment.");
    const push = result(one, { clipped: new Uint8Array(4), push: Float64Array.of(0.1, 0, 0, 0) });
    expect(verdict({ ...of, result: push })).toMatch(/^Pushed to be more likely\. 22 % more likely now/);
    expect(verdict({ ...of, result: push, evaluation: true })).toMatch(/^An evaluation trains nothing: an update on it would make it more likely\./);
    expect(verdict({ ...of, measured: false, result: null })).toMatch(/did not train on the response/);
  });

  it("is derived step by step, the branch that was taken marked", () => {
    const lines = derivation(analysed([]), result(one, { push: NONE }), 0, -1, -1.6931471806);
    expect(lines.map((l) => l.what)).toEqual(["log-ratio", "ratio r", "allowed", "advantage A", "r × A", "clip(r) × A", "objective", "weight in the mean", "push"]);
    expect(lines.find((l) => l.branch === "wins")?.how).toBe("1.2 × 1.000");
    expect(lines.find((l) => l.what === "weight in the mean")?.how).toBe("about 1 in 4");
    const penalties = [{ use: { part: "reference_kl", beta: 0.04 }, penalty: Float64Array.of(1.325, 0, 0, 0), weight: NONE }];
    const line = derivation(analysed([]), result(one, { push: NONE, penalties }), 0, -1, -2).find((l) => l.what === "− reference kl");
    expect(line).toMatchObject({ how: "0.04 × 33.13", value: "1.325" });
  });
});

describe("a part of the user's own", () => {
  it("gives the push where nothing can be computed: minus the stored gradient weight", () => {
    const one = pass("0.0", {});
    one.tokens?.channels.set("gradient_weight", Float32Array.of(0.5, -1, 0, 0));
    expect(Array.from(channelValues(one, "push") ?? [])).toEqual([-0.5, 1, 0, 0]);
    expect(channelValues(one, "token_objective")).toBeNull();
  });
});
