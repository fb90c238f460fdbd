import { describe, expect, it } from "vitest";

import type { Pass, Step, StepGroup, StepResponse } from "../bundle/step";
import type { Manifest, MicroBatchLine } from "../bundle/types";
import { algorithms } from "../objective";
import { analyse, analysed, available, changed, newestSpec, ownSpec, reconcile, resized } from "./index";
import { readOwn } from "./own";
import type { Analysis } from "./types";

const GRPO = algorithms.get("grpo")!;
const OWN = { ...GRPO, parts: { ...GRPO.parts, constraint: [] } };

const LINE: MicroBatchLine = {
  rollout: 0, rows: 4, tokens: 8, loss: 0.25, entropy_coef: null, entropy_bonus: null, router_loss: null, dtype: "float32",
  update_tokens: 8, update_rows: 4, width: 2, counted_rows: 4, groups: 2, loss_gap: null, loss_tolerance: null, data_parallel_rank: null,
};

/** Two groups of two responses with two tokens each, one of the groups without a signal; all in one forward pass. */
function step(line: Partial<MicroBatchLine> = {}, reward = [1, 0, 1, 1]): Step {
  const groups = [0, 1].map((number): StepGroup => {
    const responses = [0, 1].map((place): StepResponse => {
      const row = number * 2 + place;
      const response: StepResponse = {
        key: `0.${row}`, row, length: 2, counted: 2, reward: reward[row]!, components: [], advantage: [1, -1, 0, 0][row]!,
        isWeight: NaN, labels: new Map(), trained: true, passes: [],
      };
      const channels = new Map([
        ["log_probs", Float32Array.of(-1, -2)],
        ["old_log_probs", Float32Array.of(-1.5, -2 - row)],
      ]);
      const tokens = { n: 2, ids: [1, 2], strings: ["a", "b"], mask: [1, 1], reason: null, channels };
      const measured = { microBatch: 0, logRatioSum: 0, tokenKlSum: 0 };
      response.passes.push({ key: response.key, response, number: 0, measured, tokens } satisfies Pass);
      return response;
    });
    return {
      key: `0.${number}`, rollout: 0, group: number, prompt: "", kept: true, weight: 1, aliases: {}, responses,
      passes: responses.flatMap((each) => each.passes), ranks: [0], inUpdate: 2, mean: 0, std: 0, flat: number === 1,
    };
  });
  const part = {
    entry: "update" as const, kind: "train" as const, attempt: 0, update: 0, step: 1, rollouts: [0],
    is_first_step_after_rollout_phase: true, segment: "r0-000000", responses: [0, 4] as const, tokens: [0, 8] as const,
    time: 0, accumulation_steps: 1, data_parallel_size: 1, length_constant: null, micro_batches: [{ ...LINE, ...line }], rank: 0,
  };
  const update = { kind: "train" as const, attempt: 0, update: 0, step: 1, rollouts: [0], first: true, parts: [part] };
  return { update, groups, channels: new Set(["log_probs", "old_log_probs", "advantages"]) };
}

function manifest(algorithm: unknown = OWN, notes: string[] = []): Manifest {
  return {
    version: "1.0", created: "", status: "finished", ranks: 1, channels: ["log_probs", "old_log_probs"], reward_names: [],
    header: { task: "", dataset: "", algorithm: "grpo", model_name: "", totalSteps: null, group_size: 2 },
    trainer: { library: "", version: "" }, algorithms: [],
    attempts: [
      {
        attempt: 0, started: "", first_update: 0, status: "finished", ranks: 1, algorithm, algorithm_notes: notes,
        reward_weights: [],
      },
    ],
    lost: { rollouts: 0, updates: 0, evaluations: 0, tokens: 0, reason: null },
  } as unknown as Manifest;
}

describe("ownSpec", () => {
  it("takes what the attempt says, the same object each time", () => {
    const of = manifest();
    expect(ownSpec(of, 0)?.id).toBe("grpo");
    expect(ownSpec(of, 0)).toBe(ownSpec(of, 0));
    expect(ownSpec(of, 1)).toBeNull();
  });

  it.each([[null], ["grpo"], [{}], [{ id: "x", name: "x", parts: { gate: 3 } }], [[1]]])("never throws: %j", (json) => {
    expect(ownSpec(manifest(json), 0)).toBeNull();
    expect(readOwn(manifest(json), 0).fault).toMatch(/\S/);
    expect(readOwn(manifest(json), 0).fault).not.toContain("\n");
  });
});

describe("analyse", () => {
  it("takes the trainer's advantages for the run's own, and computes a what-if's from the whole rollout", () => {
    const open = step();
    const own = analyse(open, manifest(), OWN, true);
    expect(own.missing).toBe("");
    expect([...own.passes.values()].map((each) => each.advantages[0])).toEqual([1, -1, 0, 0]);
    expect(own.passes.get("0.0")!.push[1]).toBeGreaterThan(0);
    const dr = analyse(open, manifest(), algorithms.get("dr_grpo")!, false);
    expect([...dr.passes.values()].map((each) => each.advantages[0])).toEqual([0.5, -0.5, 0, 0]);
    expect(dr.notes.join()).toContain("computed here");
    const wider = { ...OWN, parts: { ...OWN.parts, bounds: { part: "around_one", epsilon_low: 0.9, epsilon_high: 0.9 } } };
    const what = analyse(open, manifest(), wider, false);
    expect(what.passes.get("0.0")!.advantages[0]).toBe(1);
    expect(what.notes.join()).toContain("the trainer's are taken");
  });

  it("says what is missing in one line with how to have it", () => {
    const { missing, passes } = analyse(step(), manifest(), GRPO, false);
    expect(missing).toMatch(/^GRPO needs ref_log_probs \(.*\), which was not captured\. To have it: .* Or leave it out: .*beta/);
    expect(passes.size).toBe(0);
    expect(available(step(), manifest(), GRPO).missing).toBe(missing);
  });

  it("says of how many responses there is no reward, and takes the trainer's advantages where there is none at all", () => {
    const some = analyse(step({}, [1, NaN, 1, 1]), manifest(), algorithms.get("dr_grpo")!, false);
    expect(some.approximate.join()).toContain("1 response of the rollout has no reward");
    const none = analyse(step({}, [NaN, NaN, NaN, NaN]), manifest(), algorithms.get("dr_grpo")!, false);
    expect(none.approximate.join()).toContain("No reward");
    expect(none.passes.get("0.0")!.advantages[0]).toBe(1);
  });

  it("never throws, whatever a part is called or a number is", () => {
    for (const parts of [
      { ...OWN.parts, gate: { part: "__proto__" } },
      { ...OWN.parts, aggregation: { part: "constructor" } },
      { ...OWN.parts, bounds: { part: "around_one", epsilon_low: "x" } },
    ]) {
      for (const own of [true, false]) {
        const { missing } = analyse(step(), manifest(), { ...OWN, parts }, own);
        expect(missing).toMatch(/\S/);
      }
    }
    const display = { ...OWN, display: { cards: [] } };
    expect(analyse(step(), manifest(), display, true).missing).toContain("only shown");
  });

  it("computes a run with an advantage of the user's own, whose code it does not have: it was recorded", () => {
    const mine = { ...OWN, parts: { ...OWN.parts, baseline: { part: "mine", strength: 2 }, scale: [] } };
    const own = analyse(step(), manifest(mine), mine, true);
    expect([own.missing, own.passes.get("0.0")!.advantages[0]]).toEqual(["", 1]);
    const wider = { ...mine, parts: { ...mine.parts, bounds: { part: "around_one", epsilon_low: 0.9, epsilon_high: 0.9 } } };
    expect(analyse(step(), manifest(mine), wider, false).missing).toBe("");
    const other = { ...mine, parts: { ...mine.parts, baseline: { part: "mine", strength: 3 } } };
    expect(analyse(step(), manifest(mine), other, false).missing).toContain("baseline mine");
  });

  it("leaves out what the update does not hold", () => {
    const empty = { ...step(), groups: [] };
    expect(analyse(empty, manifest(), OWN, true).missing).toContain("No token");
  });
});

describe("analysed", () => {
  it("is the same object as long as it is kept, and forgets the oldest", () => {
    const open = step();
    const of = manifest();
    const first = analysed(open, of, OWN, true);
    expect(analysed(open, of, { ...OWN }, true)).toBe(first);
    expect(analysed(open, of, OWN, false)).not.toBe(first);
    for (const id of ["gspo", "dr_grpo", "cispo", "reinforce"]) analysed(open, of, algorithms.get(id)!, false);
    expect(analysed(open, of, OWN, true)).not.toBe(first);
    expect(analysed(step(), of, OWN, true)).not.toBe(first);
  });
});

describe("changed", () => {
  const of = (push: number[]) => ({ passes: new Map([["0.0", { push: Float64Array.from(push) }]]) }) as unknown as Analysis;

  it("lists signs that change, pushes that vanish and appear, the largest first; rounding is none", () => {
    const found = changed(of([1, -2, 3, 0, 5, 1e-9, 0]), of([-1, 0, 3, 4, 6, 0, 0]));
    expect(found.map(({ token, what }) => [token, what])).toEqual([
      [3, "appears"],
      [0, "sign"],
      [1, "vanishes"],
    ]);
  });
});

describe("resized", () => {
  const of = (push: number[]) => ({ passes: new Map([["0.0", { push: Float64Array.from(push) }]]) }) as unknown as Analysis;

  it("counts pushes of another size on the same side, and says by which factors", () => {
    expect(resized(of([1, -2, 3, 0, 4, 5]), of([0.25, -1, 3, 1, -4, 0]))).toEqual({ tokens: 2, of: 5, least: 0.25, most: 0.5 });
    expect(resized(of([1, 2]), of([1, 2]))).toEqual({ tokens: 0, of: 2, least: NaN, most: NaN });
  });
});

describe("newestSpec", () => {
  it("is the algorithm of the newest attempt, and none where the run says none", () => {
    expect(newestSpec(manifest())?.id).toBe(OWN.id);
    expect(newestSpec({ ...manifest(), attempts: [] })).toBeNull();
  });
});

describe("reconcile", () => {
  const recomputed = analyse(step(), manifest(), OWN, true).loss;
  const of = (line: Partial<MicroBatchLine>, notes: string[] = [], algorithm: unknown = OWN) => {
    const open = step(line);
    const run = manifest(algorithm, notes);
    const spec = ownSpec(run, 0);
    return reconcile(open, run, spec && analyse(open, run, spec, true));
  };

  it.each([
    ["the trainer's loss, and its entropy bonus and router loss", { loss: recomputed - 0.02 + 0.5, entropy_coef: 0.01, entropy_bonus: 2, router_loss: 0.5 }, "reproduced"],
    ["another loss", { loss: recomputed + 1e-3 }, "off"],
    ["another loss in half precision", { loss: recomputed + 1e-3, dtype: "bfloat16" }, "reproduced"],
    ["no loss", { loss: null }, "unknown"],
    ["an entropy bonus of unknown size", { loss: recomputed, entropy_coef: 0.01 }, "unknown"],
    ["a sample", { loss: 0.5, rows: 8 }, "unknown"],
    ["a sample that was compared while training", { loss: 0.5, rows: 8, loss_gap: 1e-8, loss_tolerance: 1e-6 }, "reproduced"],
    ["a sample that was off while training", { loss: 0.5, rows: 8, loss_gap: 1e-3, loss_tolerance: 1e-6 }, "off"],
    ["a sample whose gap was no number", { loss: 0.5, rows: 8, loss_gap: null, loss_tolerance: 1e-6 }, "off"],
  ] as const)("with %s", (_, line, status) => {
    const found = of(line);
    expect([found.status, found.why]).toEqual([status, expect.stringMatching(/\S\.$/)]);
  });

  it("never throws where a bundle's numbers are no numbers of tokens", () => {
    const open = step();
    open.groups[0]!.responses[0]!.length = 1e300;
    const own = analyse(open, manifest(), OWN, true);
    expect(own.missing).toMatch(/\S/);
    expect(reconcile(open, manifest(), own).status).toBe("unknown");
    expect(available(open, manifest(), OWN).missing).toMatch(/\S/);
  });

  it("names the likely cause, and says why there is no algorithm", () => {
    expect(of({ loss: 9 }, ["loss_type 'new' is not known"]).why).toContain("Likely cause: loss_type 'new' is not known");
    const unsaid = of({}, [], null);
    expect(unsaid.status).toBe("unknown");
    expect(unsaid.why).toContain("does not say which algorithm");
    expect(of({}, ["a loss of its own"], null).why).toContain("a loss of its own");
    expect(of({}, [], { id: 3 }).why).toContain("cannot be read");
  });
});
