/** What the vectors do not hold: notes, constraints one by one, bounds, what fails. Numbers are Python's. */
import { describe, expect, test } from "vitest";
import {
  AlgorithmError,
  MissingInputError,
  advantagesOf,
  algorithms,
  evaluate,
  makeBatch,
  specFrom,
  type AlgorithmSpec,
  type BatchInput,
  type InputArray,
} from ".";

function get(id: string): AlgorithmSpec {
  return algorithms.get(id)!;
}

const ARRAYS: Record<string, InputArray> = {
  log_probs: [-1, -0.5, 0.2, -2, NaN, -1, -0.3, -0.3, -0.3, -1, -1.5, -0.1],
  old_log_probs: [-1.2, -0.5, -0.2, -1, -1, -1, -0.3, -0.2, -0.3, -1, -1, -1],
  ref_log_probs: new Float32Array(12).fill(-1),
  entropies: [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3],
  mask: [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0],
  reward: [1, 0, NaN, 0.5],
  group: ["a", "a", "b", "b"],
  source: [0, 1, 0, 2],
};

function batch(changes: Record<string, InputArray> = {}, more: Partial<BatchInput> = {}) {
  return makeBatch({ B: 4, T: 3, arrays: { ...ARRAYS, ...changes }, ...more });
}

const INVALID = "1 tokens hold a NaN or an infinity: they contribute nothing";
const UNSCORED = "1 responses have no finite reward: their advantage is 0";
const POSITIVE = "1 tokens have a log-probability above 0: is a sign swapped?";

describe("notes", () => {
  test("tell of values that are not finite, responses without a reward and swapped signs", () => {
    const found = evaluate(get("grpo"), batch());
    expect(found.notes).toEqual([INVALID, UNSCORED, POSITIVE]);
    expect(found.loss).toBeCloseTo(-0.12205304813216754, 12);
    expect([...found.clipped]).toEqual([2, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    expect([...found.invalid]).toEqual([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
  });

  test("tell of rows no component of a mixture is for", () => {
    const found = evaluate(get("chord"), batch());
    const unknown = "1 responses are of a source chord has no component for: they contribute nothing";
    expect(found.notes).toEqual([INVALID, UNSCORED, POSITIVE, unknown]);
    expect(found.loss).toBeCloseTo(0.1, 12);
  });

  test("tell of rewards that cannot be squared", () => {
    const found = evaluate(get("grpo"), batch({ reward: [1e200, 0, 3, 1] }));
    expect(found.notes[2]).toBe(
      "an advantage overflowed or is undefined, and counts as 0: rewards of this size (up to 1e+200) cannot be squared",
    );
    expect(found.loss).toBeCloseTo(0.013190516705686814, 12);
  });
});

test("constraints are told one by one", () => {
  const spec = get("grpo");
  const further = [
    { part: "kl", beta: 0 },
    { part: "entropy_bonus", coefficient: 0.01 },
    { part: "kl", beta: 0.1, estimator: "k1", reference: "old_log_probs" },
  ];
  const parts = { ...spec.parts, constraint: [...spec.parts.constraint, ...further] };
  const found = evaluate({ ...spec, parts }, batch());
  expect(found.constraints.map(({ number, attributable }) => [number, attributable])).toEqual([
    [0, true],
    [2, false],
    [3, true],
  ]);
  const losses = [0.007583011752292105, -0.0015555555555555555, -0.008333333333333333];
  found.constraints.forEach(({ loss }, k) => expect(loss).toBeCloseTo(losses[k]!, 12));
  expect(found.constraintLoss).toBeCloseTo(losses[0]! + losses[2]!, 12);
  expect(found.entropyLoss).toBeCloseTo(losses[1]!, 12);
  expect(found.constraints[2]!.penalty[0]).toBeCloseTo(0.02, 12);
  expect(found.constraints[2]!.weight[3]).toBeCloseTo(0.0125, 12);
  expect(Math.max(...found.constraints[1]!.weight)).toBe(0);
});

test("bounds are there for every token, and infinite where there are none", () => {
  const clipped = evaluate(get("grpo"), batch());
  expect([clipped.low[5], clipped.high[5]]).toEqual([0.8, 1.2]);
  const free = evaluate(get("reinforce"), batch());
  expect([free.low[0], free.high[0]]).toEqual([-Infinity, Infinity]);
  expect(clipped.logRatio[0]).toBeCloseTo(0.2, 12);
});

test("detached weights are told", () => {
  const sampled = { rollout_log_probs: [-1.5, -0.5, -5, -1, -1, -1, -0.3, -0.2, -0.3, -1, -1, -1] };
  const found = evaluate(get("tis"), batch(sampled), { cap: 2 });
  expect([...found.weight].slice(0, 4)).toEqual([expect.closeTo(Math.exp(0.3), 12), 1, 2, 1]);
});

test("hyper-parameters can be changed", () => {
  expect(evaluate(get("grpo"), batch(), { beta: 0 }).constraintLoss).toBe(0);
  expect(() => evaluate(get("grpo"), batch(), { beta: -1 })).toThrow("beta: must be 0 or more, not -1");
});

describe("advantages of whole groups", () => {
  test.each([...algorithms.keys()])("are those %s has where it is evaluated", (id) => {
    const spec = get(id);
    const some = batch({
      log_probs: ARRAYS.old_log_probs!,
      reward: [1, 0, 0, 0.5],
      rollout_log_probs: ARRAYS.old_log_probs!,
    });
    let expected;
    try {
      expected = evaluate(spec, some);
    } catch (error) {
      // It needs channels that this batch does not have.
      expect(error).toBeInstanceOf(MissingInputError);
      return;
    }
    const { advantages, often } = advantagesOf(spec, some);
    const mask = ARRAYS.mask as number[];
    const width = advantages.length / 4;
    const shown = mask.map((is, i) => advantages[width === 1 ? Math.floor(i / 3) : i]! * is);
    expect(shown.map((value) => value + 0)).toEqual([...expected.advantages].map((value) => value + 0));
    expect(often).toHaveLength(4);
  });

  test("need no more than rewards and groups", () => {
    const arrays = { log_probs: [-1, -1], mask: [1, 1], reward: [1, 0], group: [0, 0] };
    const { advantages } = advantagesOf(get("gspo"), makeBatch({ B: 2, T: 1, arrays }));
    expect(advantages[0]).toBeCloseTo(Math.SQRT1_2, 5);
  });

  test.each(["pf_ppo", "dapo", "d3s"])("what %s filters can be said instead", (id) => {
    const spec = get(id);
    const values = ARRAYS.entropies!;
    const arrays = { reward: [1, 0, 1, 1], values, old_entropies: values, log_probs: ARRAYS.old_log_probs! };
    const whole = evaluate(spec, batch(arrays));
    const { often } = advantagesOf(spec, batch(arrays));
    const filtered = evaluate({ ...spec, parts: { ...spec.parts, filter: [] } }, batch(arrays, { often }));
    expect([...often].some((value) => value !== 1)).toBe(true);
    expect([...filtered.gradientWeight]).toEqual([...whole.gradientWeight]);
    expect(filtered.loss).toBe(whole.loss);
  });
});

test("a batch without a response or without a token is nothing", () => {
  const empty = makeBatch({
    B: 2,
    T: 0,
    arrays: { log_probs: [], old_log_probs: [], ref_log_probs: [], mask: [], reward: [1, 0], group: [0, 0] },
  });
  expect(evaluate(get("grpo"), empty)).toMatchObject({ loss: 0, B: 2, T: 0, notes: [] });
});

describe("what is wrong is said in one line", () => {
  test("a channel that is missing, and how to have it", () => {
    const given = { B: 1, T: 1, arrays: { log_probs: [-1], mask: [1], reward: [1], group: [0] } };
    const error = new MissingInputError(
      "grpo needs old_log_probs (Log-probability under the policy that sampled the response): " +
        "pass old_log_probs=log_probs where the trainer skips it because every ratio is 1",
      ["old_log_probs", "ref_log_probs"],
    );
    expect(() => evaluate(get("grpo"), makeBatch(given))).toThrow(error);
  });

  test.each<[Record<string, InputArray>, string]>([
    [{ log_prob: [] }, "unknown input log_prob; did you mean log_probs?"],
    [{ constructor: [] as number[] }, "unknown input constructor"],
    [{ old_log_probs: [1, 2] }, "old_log_probs has shape (2,); (4, 3) is needed, flat, like log_probs (4, 3)"],
    [{ reward: ["1", "2", "3", "4"] }, "reward is not numeric"],
  ])("%j", (arrays, message) => {
    expect(() => batch(arrays)).toThrow(new AlgorithmError(message));
  });

  test("a gate for whole responses on ratios of tokens", () => {
    const spec = get("real_logistic");
    const parts = { ...spec.parts, ratio: { part: "token" } };
    expect(() => evaluate({ ...spec, parts }, batch())).toThrow("gate: a ratio of whole responses is needed");
  });

  test("segments that are no numbers from 0", () => {
    const parts = { ratio: { part: "segment" }, gate: { part: "plain_ratio" }, aggregation: { part: "token_mean" } };
    const spec = specFrom({ id: "x", name: "x", parts });
    const segments = new Float64Array(12).fill(1e12);
    expect(() => evaluate(spec, batch({ segments }))).toThrow("segments: numbers from 0 up are needed");
  });

  test("an algorithm that is only shown", () => {
    expect(() => evaluate({ ...get("grpo"), display: {} }, batch())).toThrow("grpo is only shown");
  });
});

test("a token whose log-ratio was cut before the product has no gradient", () => {
  const parts = {
    baseline: { part: "unit" },
    ratio: { part: "sequence_product", clamp: 0.5 },
    gate: { part: "plain_ratio" },
    aggregation: { part: "token_sum" },
  };
  const arrays = { log_probs: [-1, -1], old_log_probs: [-2, -1.2], mask: [1, 1] };
  const found = evaluate(specFrom({ id: "x", name: "x", parts }), makeBatch({ B: 1, T: 2, arrays }));
  expect(found.gradientWeight[0]).toBeCloseTo(0, 12);
  expect(found.gradientWeight[1]).toBeCloseTo(-2 * Math.exp(0.7), 12);
});
