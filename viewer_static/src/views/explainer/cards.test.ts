import { describe, expect, it } from "vitest";

import type { PassResult } from "../../analysis";
import type { Pass, StepGroup, StepResponse } from "../../bundle/step";
import { algorithms, type AlgorithmSpec, differences, evaluate, makeBatch, specFrom } from "../../objective";
import { cardsOf, type PartCard, slotCards } from "./cards";
import { markup } from "../../mathml";
import { at, type Reading } from "./reading";
import { stagesOf } from "./stages";
import { sentence, verdict } from "./sentences";
import { swapped, withChanges, withFitting } from "../../analysis/swap";

/** A group of four responses of two tokens each, evaluated by the engine as one batch. */
function reading(spec: AlgorithmSpec, logRatios: readonly number[], row: number, token: number, rewards = [1, 0, 0, 0.5], masked: readonly number[] = []): Reading {
  const [B, T] = [4, 2];
  const old = new Float64Array(B * T).fill(-1);
  const log_probs = Float64Array.from(logRatios, (value) => value - 1);
  const ref_log_probs = new Float64Array(B * T).fill(-1.25);
  const mask = Float64Array.from({ length: B * T }, (_, i) => (masked.includes(i) ? 0 : 1));
  const values = Float64Array.from({ length: B * T }, (_, i) => 0.2 + 0.1 * i);
  const batch = makeBatch({ B, T, arrays: { log_probs, old_log_probs: old, ref_log_probs, values, mask, reward: Float64Array.from(rewards), group: new Float64Array(B) } });
  const evaluation = evaluate(spec, batch);
  const responses: StepResponse[] = rewards.map((reward, b) => {
    const response: StepResponse = { key: `0.${b}`, row: b, length: T, counted: T, reward, components: [], advantage: NaN, isWeight: NaN, labels: new Map(), trained: true, passes: [] };
    const of = (values: Float64Array) => Float32Array.from(values.subarray(b * T, (b + 1) * T));
    const pass: Pass = {
      key: response.key, response, number: 0, measured: { microBatch: 0, logRatioSum: 0, tokenKlSum: 0 },
      tokens: {
        n: T, ids: [1, 2], strings: ["a", "b"], mask: [...mask.subarray(b * T, (b + 1) * T)], reason: null,
        channels: new Map([["log_probs", of(log_probs)], ["old_log_probs", of(old)], ["ref_log_probs", of(ref_log_probs)], ["values", of(values)]]),
      },
    };
    response.passes.push(pass);
    return response;
  });
  const group: StepGroup = {
    key: "0.0", rollout: 0, group: 0, prompt: "", kept: true, weight: 1, aliases: {}, responses, passes: responses.flatMap((each) => each.passes),
    ranks: [0], inUpdate: 4, mean: 0.375, std: 0.4787, flat: rewards.every((each) => each === rewards[0]),
  };
  const response = responses[row]!;
  const cut = (values: Float64Array) => values.subarray(row * T, (row + 1) * T);
  const result: PassResult = {
    pass: response.passes[0]!, advantages: cut(evaluation.advantages), ratio: cut(evaluation.ratio), low: cut(evaluation.low), high: cut(evaluation.high),
    tokenObjective: cut(evaluation.tokenObjective), policyWeight: cut(evaluation.policyWeight), constraintWeight: cut(evaluation.constraintWeight),
    gradientWeight: cut(evaluation.gradientWeight), push: cut(evaluation.gradientWeight).map((weight) => -weight),
    clipped: evaluation.clipped.subarray(row * T, (row + 1) * T), mask: cut(evaluation.mask), weight: cut(evaluation.weight), aggregation: cut(evaluation.aggregation),
    penalties: evaluation.constraints.map(({ use, penalty, weight }) => ({ use, penalty: cut(penalty), weight: cut(weight) })),
  };
  return { spec, group, response, pass: result.pass, token, result, stages: stagesOf(spec, group), constantLength: NaN, evaluation: false };
}

const grpo = algorithms.get("grpo")!;
const FRESH = new Array<number>(8).fill(0);
const MOVED = [0.5, 0.1, 0, 0, -0.5, 0, 0, 0];

function part(of: Reading, slot: Parameters<typeof slotCards>[1]): PartCard {
  return slotCards(of.spec, slot, of).parts[0]!;
}

/** The numbers of a card by symbol, those in its formula alone. */
function numbers(card: PartCard): Record<string, number> {
  return Object.fromEntries(card.terms.filter((term) => term.symbol && term.value !== null).map((term) => [term.symbol, term.value!]));
}

describe("the numbers on the terms", () => {
  it("are those of the group for the advantage", () => {
    const of = reading(grpo, FRESH, 0, 0);
    const baseline = numbers(part(of, "baseline"));
    expect(baseline).toMatchObject({ R_i: 1, "\\mu_g": 0.375, "\\hat A_i": 0.625, G: 4 });
    const scale = numbers(part(of, "scale"));
    const std = Math.sqrt((0.625 ** 2 + 2 * 0.375 ** 2 + 0.125 ** 2) / 3);
    expect(scale["\\sigma_g"]).toBeCloseTo(std, 12);
    expect(scale["\\hat A_i"]).toBe(0.625);
    expect(scale["\\hat A_i'"]).toBeCloseTo(0.625 / (std + 1e-6), 12);
    expect(scale["\\hat A_i'"]).toBe(of.result!.advantages[0]);
  });

  it("are the engine's for ratio, bounds, gate, constraint and share", () => {
    const of = reading(grpo, MOVED, 0, 0);
    const { result } = of;
    expect(numbers(part(of, "ratio"))["\\rho"]).toBe(result!.ratio[0]);
    const gate = part(of, "gate");
    const [open, clipped] = gate.terms.filter((term) => term.state);
    expect(open).toMatchObject({ state: "loses", value: result!.ratio[0]! * result!.advantages[0]! });
    expect(clipped).toMatchObject({ state: "wins", value: 1.2 * result!.advantages[0]! });
    expect(gate.sentence).toContain("The clipped branch wins the min");
    expect(verdict(of)).toMatch(/^Clipped: already 65 % more likely than when sampled, so the policy term pushes no further; the constraint pulls it down\.$/);
    expect(part(of, "constraint").terms.at(-1)?.value).toBe(result!.penalties[0]!.penalty[0]);
    expect(numbers(part(of, "aggregation"))).toMatchObject({ a: result!.aggregation[0], "\\frac{1}{N}": 1 / 4, "\\frac{1}{|y_i|}": 1 / 2 });
  });

  it("are of the response where the formula speaks of the response, and of the token where it speaks of the token", () => {
    const logs = [0.5, 0.1, 0, 0, -0.5, 0, 0, 0];
    const ratio = (use: Record<string, unknown>, token: number) => {
      const spec = specFrom({ ...grpo, id: "x", parts: { ...grpo.parts, ratio: use } });
      const of = reading(spec, logs, 0, token);
      return { found: numbers(part(of, "ratio")), engine: at(of, "ratio") };
    };
    for (const token of [0, 1]) {
      const { found, engine } = ratio({ part: "sequence_mean_detached", clamp: 10 }, token);
      expect(found).toMatchObject({ s_i: engine, "\\rho": engine });
      expect(found.s_i).toBeCloseTo(Math.exp(0.3), 12);
      expect(ratio({ part: "sequence_mean_detached", clamp: 0.2 }, token).found.s_i).toBeCloseTo(Math.exp(0.2), 12);
      expect(ratio({ part: "sequence_mean" }, token).found["\\rho"]).toBeCloseTo(Math.exp(0.3), 12);
      expect(ratio({ part: "sequence_product" }, token).found["\\rho"]).toBeCloseTo(Math.exp(0.6), 12);
      const mixed = ratio({ part: "hybrid", share: 0.5, sequence_epsilon: 0.1 }, token).found;
      expect(mixed.s_i).toBeCloseTo(Math.exp(0.3), 6);
      expect(mixed.r_t).toBeCloseTo(Math.exp(logs[token]!), 6);
      // Against the reference the ratio is another one.
      expect(ratio({ part: "hybrid", reference: "ref_log_probs" }, token).found.r_t).toBeCloseTo(Math.exp(logs[token]! + 0.25), 6);
    }
  });

  it("are a token's own wherever a formula says r_t, also where responses are compared", () => {
    const spec = algorithms.get("gspo")!;
    const searched = specFrom({ ...spec, id: "x", parts: { ...spec.parts, bounds: { part: "batch_search" } } });
    for (const [token, log] of [[0, 0.5], [1, 0.1]] as const) {
      expect(numbers(part(reading(searched, MOVED, 0, token), "bounds")).r_t).toBeCloseTo(Math.exp(log), 6);
    }
  });

  it("are a score's where that tells responses apart: a logarithm, unless it is asked to be the ratio", () => {
    const disco = algorithms.get("disco")!;
    const scores = (score: string) => {
      const of = reading(specFrom({ ...disco, id: "x", parts: { ...disco.parts, gate: { part: "discriminative", score } } }), MOVED, 0, 0);
      return [part(of, "ratio"), part(of, "gate")].map((card) => numbers(card).s_i);
    };
    expect(scores("log").map((score) => score?.toFixed(6))).toEqual(["-0.700000", "-0.700000"]);
    expect(scores("ratio").map((score) => score?.toFixed(6))).toEqual(["-0.700000", Math.exp(-0.7).toFixed(6)]);
    expect(part(reading(disco, MOVED, 0, 0), "ratio")).toMatchObject({ outcome: "−0.7", sentence: expect.stringContaining("log-probability of −0.7 on average") });
  });

  it("stand behind what they are the result of, and not behind what a symbol means", () => {
    const gspo = algorithms.get("gspo")!;
    const logistic = specFrom({ ...gspo, id: "x", parts: { ...gspo.parts, gate: { part: "group_logistic" } } });
    const { latex } = part(reading(logistic, MOVED, 0, 0), "gate");
    expect(latex).toMatch(/ = \\underset\{\\text\{⦃\d+i⦄\}\}\{x\},\\qquad/);
    expect(latex).toMatch(/s=\\log\\underset\{[^=]*\\rho\}$/);
  });

  it("mark no winner on fresh samples, and the unclipped branch where it wins", () => {
    expect(part(reading(grpo, FRESH, 0, 0), "gate").terms.filter((term) => term.state).map((term) => term.state)).toEqual(["ties", "ties"]);
    const back = reading(grpo, [-0.5, 0, 0, 0, 0, 0, 0, 0], 0, 0);
    expect(part(back, "gate").terms.filter((term) => term.state).map((term) => term.state)).toEqual(["wins", "loses"]);
  });

  it("say that a group without spread teaches nothing", () => {
    const of = reading(grpo, FRESH, 0, 0, [1, 1, 1, 1]);
    expect(part(of, "baseline").sentence).toBe("Every sibling scored the same, so there is nothing to learn from this group.");
    expect(sentence({ slot: "gate", use: grpo.parts.gate, number: 0 }, of)).toContain("advantage is 0");
    expect(verdict(of)).toBe("Every sibling scored the same, so only the constraint pulls at it, down: made less likely.");
  });

  it("do not say so under a critic, which has advantages even there, token by token", () => {
    const of = reading(algorithms.get("ppo")!, FRESH, 0, 0, [1, 1, 1, 1]);
    const words = [part(of, "baseline").sentence, part(of, "scale").sentence, verdict(of)].join(" ");
    expect(at(of, "advantages")).not.toBe(0);
    expect(words).not.toContain("scored the same");
    expect(words).toMatch(/From this token on it went [\d.]+ (better|worse) than expected\./);
    expect(words).toMatch(/Pushed (up|down)/);
  });

  it("say nothing of ratio and advantage of a token that does not count", () => {
    for (const spec of [grpo, algorithms.get("ppo")!]) {
      const of = reading(spec, MOVED, 0, 0, [1, 0, 0, 0.5], [0]);
      expect(of.result!.ratio[0], "the engine has 0").toBe(0);
      expect([at(of, "ratio"), at(of, "advantages")]).toEqual([NaN, NaN]);
      expect(numbers(part(of, "ratio"))["\\rho"]).toBeUndefined();
      expect(part(of, "ratio")).toMatchObject({ outcome: "", sentence: "The token does not count, so its ratio is not used." });
      const words = cardsOf(spec, of).flatMap(({ slots }) => slots.flatMap(({ parts }) => parts.map((each) => each.sentence))).join(" ");
      expect(words).not.toMatch(/likely|recorded and used|The ratio|pulls it back|exactly as expected/);
    }
  });

  it("have a response that is masked whole in the group's mean, as the engine has", () => {
    for (const id of ["grpo", "dapo"]) {
      const of = reading(algorithms.get(id)!, FRESH, 0, 0, [1, 0, 0, 0.5], [6, 7]);
      expect(numbers(part(of, "baseline"))).toMatchObject({ "\\mu_g": 0.375, G: 4, "\\hat A_i": 0.625 });
    }
  });

  it("say of a single response that there is nothing to compare it with", () => {
    const of = reading(grpo, FRESH, 0, 0);
    const alone = { ...of, group: { ...of.group, responses: [of.response] } };
    expect(part(alone, "baseline").sentence).toBe("A single response: nothing to compare with.");
  });

  it("leave out responses without a reward, also where rewards are shaped", () => {
    const dapo = algorithms.get("dapo")!;
    const of = reading(dapo, FRESH, 0, 0, [1, NaN, NaN, 0.5]);
    expect(numbers(part(of, "baseline"))).toMatchObject({ R_i: 1, "\\mu_g": 0.75, G: 2 });
    const infinite = reading(grpo, FRESH, 0, 0, [Infinity, 1, 0, 0.5]);
    expect(numbers(part(infinite, "baseline"))).toMatchObject({ "\\mu_g": 0.5, G: 3 });
    expect(part(infinite, "baseline").sentence).toBe("This response has no finite reward, so there is nothing to compare.");
  });

  it("speak of the response's ratio where a response is clipped as a whole", () => {
    const of = reading(algorithms.get("gspo")!, [0.02, 0, 0, 0, 0, 0, 0, 0], 0, 1);
    expect(at(of, "clipped")).toBe(2);
    expect(verdict(of)).toBe("Clipped: the ratio of its whole response, 1.010, is above the range, so the policy term pushes no further.");
  });

  it("use the advantage that the gate's formula names", () => {
    const gate = part(reading(grpo, MOVED, 0, 0), "gate");
    expect(gate.latex).toContain("\\hat A_i'");
    expect(part(reading(algorithms.get("dr_grpo")!, MOVED, 0, 0), "gate").latex).not.toContain("\\hat A_i'");
  });

  it("say of an evaluation what an update would do", () => {
    const of = reading(grpo, [-0.5, 0, 0, 0, 0, 0, 0, 0], 0, 0);
    expect(verdict(of)).toMatch(/^Pushed up: made more likely/);
    expect(verdict({ ...of, evaluation: true })).toMatch(/^An evaluation trains nothing; an update on it would push the token up: more likely/);
  });

  it("say how much a token weighs, and call it no share", () => {
    const words = part(reading(grpo, MOVED, 0, 0), "aggregation").sentence;
    expect(words).toBe("It weighs 1/8 in the loss: each response weighs the same, and its counted tokens share that. 2 tokens of this response count.");
    expect(words).not.toContain("%");
  });
});

describe("every algorithm of the registry", () => {
  it("has cards whose formulas can be read, with numbers and without", () => {
    let terms = 0;
    const seen = new Set<string>();
    for (const spec of algorithms.values()) {
      if (spec.display) continue;
      let of: Reading | null = null;
      try {
        of = reading(spec, MOVED, 0, 0);
      } catch {
        // Needs what this group has not.
      }
      for (const each of [of, null]) {
        for (const { slots } of cardsOf(spec, each)) {
          for (const { parts } of slots) {
            for (const card of parts) {
              if (!seen.has(card.latex)) expect(markup(card.latex), `${spec.id} ${card.path}`).not.toBeNull();
              seen.add(card.latex);
              expect(card.title && card.explanation, `${spec.id} ${card.path}`).toBeTruthy();
              terms += each ? card.terms.filter((term) => term.symbol && term.text).length : 0;
              const texts = [card.sentence, card.outcome, ...card.terms.map((term) => term.text)].join(" ");
              expect(texts, `${spec.id} ${card.path}`).not.toMatch(/NaN|undefined/);
            }
          }
        }
      }
    }
    expect(terms).toBeGreaterThan(500);
  }, 20_000);
});

describe("slots that do nothing", () => {
  it("say so in words", () => {
    expect(slotCards(grpo, "weight", null).idle).toBe("none");
    expect(slotCards(specFrom({ id: "x", name: "x", parts: { gate: { part: "log_prob" }, ratio: { part: "one" }, aggregation: { part: "token_mean" } } }), "ratio", null).idle).toMatch(/^none/);
    const off = withChanges(grpo, { "constraint.0.beta": 0 });
    expect(slotCards(off, "constraint", null).idle).toContain("coefficient 0");
  });
});

describe("what-if changes", () => {
  it("swap a part, then set its hyper-parameters", () => {
    const spec = withChanges(grpo, { "aggregation.part": "token_sum", "aggregation.length": 64, "bounds.epsilon_high": 0.28 });
    expect(spec.parts.aggregation).toMatchObject({ part: "token_sum", length: 64 });
    expect(differences(grpo, spec).find(({ slot }) => slot === "bounds")?.b).toBe("around_one(epsilon_low=0.2, epsilon_high=0.28)");
    expect(grpo.parts.aggregation.part).toBe("sequence_mean_token_mean");
  });

  it("are refused where a part or value cannot be", () => {
    expect(() => withChanges(grpo, { "aggregation.part": "nonsense" })).toThrow();
    expect(() => withChanges(grpo, { "bounds.epsilon_high": -1 })).toThrow();
  });

  it("are made as far as they fit, with words for the others", () => {
    const { spec, made, refused } = withFitting(grpo, { "bounds.epsilon_high": 0.9, foo: 1, "bounds.epsilon_low": -5, "aggregation.length": 64, "aggregation.part": "token_sum" });
    expect(made).toEqual({ "bounds.epsilon_high": 0.9, "aggregation.length": 64, "aggregation.part": "token_sum" });
    expect(spec.parts.bounds).toMatchObject({ epsilon_high: 0.9 });
    expect(spec.parts.aggregation).toMatchObject({ part: "token_sum", length: 64 });
    expect(refused).toEqual([
      "foo=1 was left out: GRPO has no hyper-parameter foo.",
      "bounds.epsilon_low=-5 was left out: must be 0 or more, not -5.",
    ]);
    expect(withFitting(grpo, { "<img>": "<script>", "gate.part": "nonsense" }).refused.length).toBe(2);
  });

  it("forget the hyper-parameters of the part that goes", () => {
    const changes = { "aggregation.span": "micro_batch", "gate.dual_clip": 3 };
    expect(swapped(changes, "aggregation", "token_sum", "token_mean")).toEqual({ "gate.dual_clip": 3, "aggregation.part": "token_sum" });
    expect(swapped({ "aggregation.part": "token_sum" }, "aggregation", "token_mean", "token_mean")).toEqual({});
  });
});
