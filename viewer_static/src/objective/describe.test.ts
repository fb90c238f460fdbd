/** What is said about algorithms: expected values are those of the Python package. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import {
  INPUTS,
  SLOTS,
  algorithms,
  asRecorded,
  describePart,
  differences,
  givenAdvantages,
  hyperParameters,
  inputs,
  needs,
  parameters,
  scope,
  uses,
  withHyperParameters,
  written,
  type AlgorithmSpec,
} from ".";
import { FUNCTIONS } from "./parts";
import { partNames } from "./registry";
import { SLOT_NAMES } from "./slots";

const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

function get(id: string): AlgorithmSpec {
  return algorithms.get(id)!;
}

test("every part that is described has its function, and every function its description", () => {
  for (const slot of SLOT_NAMES) expect(Object.keys(FUNCTIONS[slot]).sort(), slot).toEqual([...partNames(slot)].sort());
  expect(Object.keys(SLOTS)).toHaveLength(12);
});

test("the table of inputs holds the words of the Python package", () => {
  const source = readFileSync(new URL("../../../unipo_hooks/objective/inputs.py", import.meta.url), "utf8");
  const table = source.slice(source.indexOf("INPUTS: dict"), source.indexOf("IDENTITIES ="));
  expect([...table.matchAll(/^ {4}"(\w+)": Input\(/gm)].map((match) => match[1])).toEqual(Object.keys(INPUTS));
  for (const { axes, meaning, capture } of Object.values(INPUTS)) {
    expect(table).toContain(`"${axes}"`);
    expect(table).toContain(`"${meaning}"`);
    expect(source).toContain(`"${capture}"`);
  }
});

test("an algorithm needs and looks at the inputs of its parts", () => {
  expect(algorithms.size).toBe(141);
  const found = ["grpo", "chord", "otb"].map((id) => [needs(get(id)), inputs(get(id)), scope(get(id))]);
  expect(found).toEqual([
    [["reward", "group", "old_log_probs", "ref_log_probs"], ["reward", "group", "old_log_probs", "ref_log_probs"], "group"],
    [["reward", "group", "old_log_probs", "source"], ["reward", "group", "old_log_probs", "source"], "batch"],
    [
      ["reward", "group", "old_log_probs", "sum_pi_squared"],
      ["reward", "group", "old_log_probs", "sum_pi_squared", "rewards", "is_weights"],
      "batch",
    ],
  ]);
});

test("what is only for a coefficient of 0 is not needed", () => {
  expect(needs(withHyperParameters(get("grpo"), { beta: 0 }))).toEqual(["reward", "group", "old_log_probs"]);
});

test("names that every object has are no parts", () => {
  expect(describePart("gate", "constructor")).toBeNull();
  expect(describePart("gate", "__proto__")).toBeNull();
  expect(parameters("gate", { part: "toString", own: 1 })).toEqual({ own: 1 });
});

describe("hyper-parameters", () => {
  test("are changed by name and by path", () => {
    expect(plain(withHyperParameters(get("grpo"), { beta: 0.1 }).parts.constraint)).toEqual([
      { part: "kl", beta: 0.1, estimator: "k3" },
    ]);
    expect(plain(withHyperParameters(get("chord"), { "bounds.epsilon_high": 0.1 }).parts.bounds)).toEqual({
      part: "around_one",
      epsilon_low: 0.2,
      epsilon_high: 0.1,
    });
    expect(get("grpo").parts.constraint[0]!.beta).toBe(0.04);
  });

  test("of a mixture's component are changed in it alone", () => {
    const spec = algorithms.get("real_logistic")!;
    const mixed: AlgorithmSpec = {
      ...get("chord"),
      mixture: get("chord").mixture.map((each, number) =>
        number === 1 ? { ...each, parts: { ...each.parts, gate: { part: "shaped_probability" } } } : each,
      ),
    };
    expect(hyperParameters(mixed).map(({ path }) => path)).toContain("mixture.1.gate.gamma");
    const changed = withHyperParameters(mixed, { "mixture.1.gate.gamma": 0.3 });
    expect(plain(changed.mixture[1]!.parts.gate)).toEqual({ part: "shaped_probability", gamma: 0.3 });
    expect(changed.parts).toEqual(mixed.parts);
    expect(hyperParameters(spec).every(({ description }) => description.meaning.length > 0)).toBe(true);
  });

  test.each([
    ["grpo", { epsilon_hihg: 0.3 }, "grpo has no hyper-parameter epsilon_hihg; did you mean epsilon_high?"],
    ["grpo", { epsilon_high: -1 }, "epsilon_high: must be 0 or more, not -1"],
    ["grpo", { epsilon_high: "x" }, "epsilon_high: a number is needed, not 'x'"],
    ["grpo", { "constraint.0.reference": "ref_log_prob" }, "constraint.0.reference: no channel 'ref_log_prob'; did you mean ref_log_probs?"],
    ["grpo", { estimator: "k4" }, "estimator: 'k4' is not one of k1, k2, k3, abs, k1+, k3+, abs+"],
    ["hapo", { epsilon_low: 0.1 }, "hapo has epsilon_low more than once; say which: modulation.0.epsilon_low, bounds.epsilon_low"],
    [
      "chord",
      { zzzzzz: 1 },
      "chord has no hyper-parameter zzzzzz; it has aggregation.span, baseline.singleton, bounds.epsilon_high, bounds.epsilon_low, gate.delta, gate.dual_clip, ratio.clamp, ratio.reference, scale.0.ddof, scale.0.eps, scale.0.singleton",
    ],
  ])("%s with %j is refused", (id, changes, message) => {
    expect(() => withHyperParameters(get(id), changes)).toThrow(new Error(message));
  });

  test("all of every algorithm can be set to the value they have", () => {
    for (const spec of algorithms.values()) {
      const values = Object.fromEntries(hyperParameters(spec).map(({ path, value }) => [path, value]));
      const found = differences(withHyperParameters(spec, values), spec);
      // Of a mixture, what is written is what the definition says, without defaults.
      expect(found.filter(({ slot }) => slot !== "mixture"), spec.id).toEqual([]);
    }
  });
});

const KL =
  "kl(beta=0.04, estimator=k3, reference=ref_log_probs, times_ratio=False, level=same, before_weight=False)";

describe("differences", () => {
  test("are told slot by slot, defaults included", () => {
    expect(differences(get("grpo"), get("dapo.trl"))).toEqual([
      { slot: "scale", heading: "Advantage", a: "group_std(eps=1e-06, ddof=1, singleton=self)", b: "group_std(eps=0.0001, ddof=1, singleton=self)" },
      { slot: "constraint", heading: "Constraint", a: KL, b: "none" },
      { slot: "aggregation", heading: "Aggregation", a: "sequence_mean_token_mean(rows=all, span=update)", b: "token_mean(span=update)" },
    ]);
  });

  test("of a mixture are told in one line", () => {
    const found = differences(get("grpo"), get("chord")).find(({ slot }) => slot === "mixture");
    expect(found).toEqual({
      slot: "mixture",
      heading: "Mixture",
      a: "none",
      b: '0.9 × rows of source 0, denominator own, statistics own, with {}; 0.1 × rows of source 1, denominator own, statistics all, with {"baseline": {"part": "unit"}, "scale": [], "ratio": {"part": "one"}, "bounds": {"part": "unbounded"}, "gate": {"part": "log_prob"}}',
    });
  });

  test("a part without values is its name", () => {
    expect(written("gate", { part: "ppo_clip" })).toBe("ppo_clip");
    expect(written("gate", { part: "ppo_clip", dual_clip: 3 })).toBe("ppo_clip(dual_clip=3)");
  });
});

describe("as it was recorded", () => {
  const recorded = (id: string, ...channels: string[]) => {
    const { parts } = asRecorded(get(id), new Set(channels));
    return plain([parts.baseline, parts.filter, parts.modulation, parts.weight, parts.mask, parts.constraint]);
  };
  const own = { part: "recorded" };

  test("an algorithm takes what the trainer computed", () => {
    expect(recorded("tis.trl", "is_weights")).toEqual([own, [], [], [{ part: "recorded_weight" }], [], []]);
    expect(recorded("clip_cov", "policy_mask")).toEqual([own, [], [], [], [{ part: "recorded_mask" }], []]);
    expect(recorded("overlong_filter.trl")).toEqual([own, [], [], [], [], []]);
  });

  test("an entropy bonus is left out, a mask of a user's own stays", () => {
    const spec = get("grpo");
    const bonus = { part: "entropy_bonus", coefficient: 0.01 };
    const mine = { part: "mine" };
    const parts = { ...spec.parts, constraint: [...spec.parts.constraint, bonus], mask: [mine] };
    const found = asRecorded({ ...spec, parts }, new Set(["policy_mask"]));
    expect(plain(found.parts.constraint)).toEqual([{ part: "kl", beta: 0.04, estimator: "k3" }]);
    expect(found.parts.mask).toEqual([{ part: "recorded_mask" }, mine]);
  });

  test("given advantages replace what is made of rewards, and modulation where they hold it", () => {
    const spec = get("hicra");
    const slots = (each: AlgorithmSpec) => uses(each.parts).map(({ path, use }) => `${path} ${use.part}`);
    expect(slots(givenAdvantages(spec)).slice(0, 2)).toEqual(["baseline recorded", "modulation.0 planning_bonus"]);
    expect(slots(givenAdvantages(spec, true)).slice(0, 2)).toEqual(["baseline recorded", "ratio token"]);
  });
});
