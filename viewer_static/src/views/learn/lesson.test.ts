import { describe, expect, it } from "vitest";

import { analyse, ownSpec } from "../../analysis";
import { buildIndex } from "../../bundle/index";
import { parseManifest } from "../../bundle/manifest";
import type { Step, StepGroup, StepResponse } from "../../bundle/step";
import type { Manifest, UpdateMetrics } from "../../bundle/types";
import { BEATS, litAt } from "./beats";
import { emptyLesson, lesson } from "./lesson";
import type { Lesson, Piece } from "./pieces";
import { sceneOf, type Scene, tellingGroup, tellingToken } from "./scene";

interface Made {
  update?: number;
  rollout?: number;
  rewards?: number[];
  prompt?: string;
  words?: string[];
  moved?: number;
  kind?: "train" | "eval";
  parts?: object | null;
  reference?: boolean;
  kept?: boolean;
}

const GRPO = {
  baseline: { part: "group_mean" }, scale: [{ part: "group_std", eps: 1e-4 }], ratio: { part: "token" },
  bounds: { part: "around_one", epsilon_low: 0.2, epsilon_high: 0.2 }, gate: { part: "ppo_clip" },
  aggregation: { part: "sequence_mean_token_mean" },
};

/** A step of one group, and the manifest of its run: as they come from a bundle, without its files. */
function made(of: Made = {}): { step: Step; manifest: Manifest; metrics: UpdateMetrics[] } {
  const { update = 3, rollout = 1, rewards = [1.25, 0.5, 0, 0.75], prompt = "How many?", words = ["Four", " apples"], moved = 0.1 } = of;
  const { kind = "train", parts = GRPO, reference = false, kept = true } = of;
  const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
  const std = Math.sqrt(rewards.reduce((a, b) => a + (b - mean) ** 2, 0) / (rewards.length - 1));
  const trained = kind === "train";
  const responses = rewards.map((reward, row): StepResponse => {
    const advantage = (reward - mean) / (std + 1e-4);
    const strings = [...words, ` ${row}`, ".".repeat(row % 2)].filter(Boolean);
    const n = strings.length;
    const then = Float32Array.from(strings, (_, t) => -0.4 - 0.3 * t - 0.05 * row);
    const channels = new Map([
      ["old_log_probs", then], ["log_probs", then.map((p, t) => p + moved * (t % 2 ? 1 : -2))], ["advantages", new Float32Array(n).fill(advantage)],
    ]);
    if (reference) channels.set("ref_log_probs", then.map((p) => p - 0.05));
    const response: StepResponse = {
      key: `0.${row}`, row, length: n, counted: n, reward, components: [reward * 0.75, reward * 0.25], advantage, isWeight: NaN, labels: new Map(), trained, passes: [],
    };
    const tokens = { n, ids: strings.map((_, t) => t), strings, mask: strings.map(() => 1), reason: null, channels };
    response.passes = [{
      key: response.key, response, number: 0, measured: trained ? { microBatch: 0, logRatioSum: NaN, tokenKlSum: NaN } : null, tokens: kept ? tokens : null,
    }];
    return response;
  });
  responses.sort((a, b) => b.reward - a.reward);
  const group: StepGroup = {
    key: `${rollout}.0`, rollout, group: 0, prompt, kept, weight: 1, aliases: {}, responses, passes: responses.flatMap((r) => r.passes), ranks: [0],
    inUpdate: trained ? responses.length : 0, mean, std, flat: rewards.every((r) => r === rewards[0]),
  };
  const count = responses.reduce((sum, r) => sum + r.length, 0);
  const line = {
    entry: "update", kind, attempt: 0, update, step: update + 1, rollouts: [rollout], is_first_step_after_rollout_phase: moved === 0, segment: "r0-000000",
    responses: [0, rewards.length], tokens: [0, count], accumulation_steps: 1, time: 1,
    micro_batches: [{ rollout, rows: rewards.length, tokens: count, loss: 0.125 * update, update_tokens: count, update_rows: rewards.length }],
  };
  const metrics = [0, 1].map((later) => ({
    entry: "metrics", kind: "train", attempt: 0, update: update + later, step: update + later + 1, rollouts: [rollout + later], captured: true,
    sums: { reward: [(mean + later / 8) * 4, 4, 9] }, scalars: { learning_rate: 1e-5 * (rollout + 1), grad_norm: 0.75 + rollout },
  }));
  const index = buildIndex({ index: [`${JSON.stringify(line)}\n`], metrics: [metrics.map((m) => `${JSON.stringify(m)}\n`).join("")] }, []);
  const manifest = parseManifest(JSON.stringify({
    format: "unipo-bundle", version: "1.0", created: "now", status: "finished", reward_names: ["correct", "brief"], channels: reference ? ["ref_log_probs"] : [],
    attempts: [{ attempt: 0, first_update: 0, algorithm: parts && { id: "mine", name: "Mine", parts }, reward_weights: [1, 1] }],
  }));
  const [captured] = index.updates[kind];
  if (!captured) throw new Error("no update");
  return { step: { update: captured, groups: [group], channels: new Set(["log_probs"]) }, manifest, metrics: index.metrics.train };
}

function sceneFrom(of: Made = {}, changes: Partial<Scene> = {}): Scene {
  const { step, manifest, metrics } = made(of);
  const spec = ownSpec(manifest, 0);
  const analysis = spec ? analyse(step, manifest, spec, true) : null;
  const scene = sceneOf({ step, manifest, metrics, spec, analysis, picked: { group: null, pass: null, token: null } });
  if (!scene) throw new Error("no scene");
  return { ...scene, ...changes };
}

const pieces = (of: Lesson): Piece[] => [...of.paragraphs.flat(), ...of.lines.flatMap((line) => line.sum)];
const numbers = (of: Lesson) => pieces(of).flatMap((p) => (typeof p === "object" && "value" in p ? [p] : []));
const text = (of: Lesson) =>
  [of.title, ...pieces(of).map((p) => (typeof p === "string" ? p : "value" in p ? p.value : "quote" in p ? p.quote : "token" in p ? p.token : (p.as ?? p.word)))].join("");
const value = (of: Lesson, what: string) => numbers(of).find((n) => n.what === what)?.exact ?? NaN;

const A = () => sceneFrom();
const B = () => sceneFrom({ update: 12, rollout: 5, rewards: [0.1, 3.5, 0.9, 0.2, 2.25], prompt: "What colour?", words: ["It", " is", " blue"], moved: -0.07, reference: true,
  parts: { ...GRPO, constraint: [{ part: "kl", beta: 0.1 }], aggregation: { part: "token_mean" }, bounds: { part: "around_one", epsilon_low: 0.1, epsilon_high: 0.3 } } });

describe("lesson", () => {
  it("speaks of what is opened: two updates share no number but those of the page", () => {
    // An update's number, its place in a response and counts of few things may well be the same.
    const few = new Set(["one", "functions", "token", "response", "groups", "harder", "clipped", "above", "below", "shortest", "next", "last", "weight.0"]);
    let compared = 0;
    BEATS.forEach((_, i) => {
      const [a, b] = [lesson(i + 1, A()), lesson(i + 1, B())];
      expect(text(a)).not.toBe(text(b));
      for (const one of numbers(a)) {
        const other = numbers(b).find((n) => n.what === one.what);
        if (!other || few.has(one.what)) continue;
        if (one.what === "component.0" || one.exact !== 0) expect(other.exact, `beat ${i + 1}: ${one.what}`).not.toBe(one.exact);
        compared++;
      }
    });
    expect(compared).toBeGreaterThan(35);
  });

  it("shows every number as it is, rounded", () => {
    for (const scene of [A(), B()]) {
      BEATS.forEach((_, i) => {
        for (const { value: shown, exact, what } of numbers(lesson(i + 1, scene))) {
          const read = Number(shown.replaceAll("−", "-").replace("+", ""));
          expect(Math.abs(read - exact), `${what}: ${shown} for ${exact}`).toBeLessThanOrEqual(0.0051 * Math.abs(exact) + 5.1e-4 * Number(Math.abs(exact) < 1));
        }
      });
    }
  });

  it("takes the advantage step by step to what the trainer used", () => {
    const found = lesson(4, A());
    expect(value(found, "mean")).toBeCloseTo(0.625, 12);
    expect(value(found, "difference")).toBeCloseTo(1.25 - 0.625, 12);
    expect(value(found, "std")).toBeCloseTo(0.5204165, 6);
    expect(value(found, "quotient")).toBeCloseTo(value(found, "advantage"), 5);
    expect(text(found)).not.toContain("changes it further");
    const loo = lesson(4, sceneFrom({ parts: { ...GRPO, baseline: { part: "leave_one_out" }, scale: [] } }));
    expect(value(loo, "mean")).toBeCloseTo((0.5 + 0 + 0.75) / 3, 12);
    expect(text(loo)).toContain("3 other responses");
    // The trainer's advantages were made in another way than these two steps.
    expect(text(loo)).toContain("changes it further");
  });

  it("tells what one token does to the loss, by the run's own rule", () => {
    const scene = A();
    const found = lesson(6, scene);
    expect(value(found, "one_in")).toBeCloseTo(4 * (scene.pass?.tokens?.n ?? 0), 6);
    expect(value(found, "term")).toBeCloseTo(value(found, "objective") * value(found, "weight"), 12);
    expect(value(found, "trainer_loss")).toBe(0.375);
    expect(text(found)).toContain("Every response has the same say");
    const other = lesson(6, B());
    expect(value(other, "one_in")).toBeCloseTo(value(other, "tokens"), 6);
    expect(text(other)).toContain("average over all tokens");
    const ratio = lesson(5, scene);
    expect(value(ratio, "ratio")).toBeCloseTo(value(ratio, "p_now") / value(ratio, "p_then"), 10);
  });

  it("says the trainer's loss as the mean over data-parallel ranks, whichever way they write", () => {
    const scene = A();
    const [part] = scene.step.update.parts;
    const [line] = part?.micro_batches ?? [];
    if (!part || !line) throw new Error("no forward pass");
    const told = (parts: (typeof part)[]) => lesson(6, { ...scene, step: { ...scene.step, update: { ...scene.step.update, parts } } });
    const of = (rank: number | null, loss: number) => ({ ...line, loss, data_parallel_rank: rank });
    const two = { ...part, data_parallel_size: 2 };
    const together = told([{ ...two, micro_batches: [of(0, 0.5), of(1, 1), of(0, 0.25), of(1, 0.75)] }]);
    const apart = told([{ ...two, micro_batches: [of(null, 0.5), of(null, 0.25)] }, { ...two, rank: 1, micro_batches: [of(null, 1), of(null, 0.75)] }]);
    expect([value(together, "trainer_loss"), value(apart, "trainer_loss")]).toEqual([1.25, 1.25]);
    const one = told([{ ...two, micro_batches: [of(null, 0.5)] }]); // the other rank wrote nothing
    expect(text(one)).not.toContain("trainer's own loss");
  });

  it("says where its loss is not the trainer's", () => {
    const scene = A();
    const [batch] = scene.analysis?.microBatches ?? [];
    if (!scene.analysis || !batch) throw new Error("nothing was computed");
    const apart = (gap: number) => text(lesson(6, { ...scene, analysis: scene.analysis && { ...scene.analysis, microBatches: [{ ...batch, gap, tolerance: 1e-6 }] } }));
    for (const gap of [0.345, -0.345, NaN]) expect(apart(gap)).toContain("These do not agree");
    expect(apart(1e-7)).not.toContain("do not agree");
  });

  it("lights nothing of training at an evaluation", () => {
    const lit = (kind: "train" | "eval") => BEATS.map((beat) => litAt(beat, kind).filter((part) => part.includes("data-slot") || part.includes("result")).length);
    expect(lit("train").slice(3, 6).every((n) => n > 0)).toBe(true);
    expect(lit("eval").slice(3)).toEqual([0, 0, 0, 0]);
    expect(litAt(BEATS[0]!, "eval")).toBe(BEATS[0]!.lit);
  });

  it("says what is missing or not the case, and invents nothing", () => {
    const flat = sceneFrom({ rewards: [0.5, 0.5, 0.5] });
    expect(text(lesson(3, flat))).toContain("nothing is learned from this question");
    expect(text(lesson(4, flat))).toContain("nothing to learn from this group");
    const bare = sceneFrom({ kept: false });
    expect(text(lesson(2, bare))).toContain("were not captured");
    expect(text(lesson(5, bare))).toContain("were not captured");
    const unknown = sceneFrom({ parts: null });
    expect(text(lesson(4, unknown))).toContain("This page does not know");
    expect(text(lesson(5, unknown))).toContain("cannot be said");
    expect(text(lesson(6, unknown))).toContain("cannot be shown");
    const evaluation = sceneFrom({ kind: "eval" });
    for (const beat of [1, 4, 5, 6, 7]) expect(text(lesson(beat, evaluation))).toMatch(/[Ee]valuation/);
    expect(text(lesson(5, A()))).toContain("no reference model");
    expect(text(lesson(5, B()))).toContain("rubber band");
    expect(text(lesson(5, sceneFrom({ moved: 0 })))).toContain("nothing has moved yet");
    const critic = lesson(4, sceneFrom({ parts: { ...GRPO, baseline: { part: "gae" } } }));
    expect(text(critic)).toContain("critic");
    expect(emptyLesson("It is gone.").paragraphs[0]).toEqual(["It is gone."]);
  });

  it("speaks of the same token later, where it was captured", () => {
    const scene = A();
    const found = lesson(7, { ...scene, after: { update: 4, logProb: Math.log(0.5) } });
    expect(value(found, "p_after")).toBeCloseTo(0.5, 12);
    expect(text(found)).toContain("Right after it, at update 4");
    expect(Number.isNaN(value(lesson(7, scene), "p_after"))).toBe(true);
  });

  it("keeps text of the run apart from its own", () => {
    const found = lesson(1, sceneFrom({ prompt: "<script>alert(1)</script>\u202e\n\nx".padEnd(4000, "y") }));
    const [quote] = pieces(found).flatMap((p) => (typeof p === "object" && "quote" in p ? [p.quote] : []));
    expect(quote).toMatch(/^<script>/);
    expect(quote?.length).toBeLessThan(165);
    expect(quote).not.toMatch(/[\u202e\n]/);
  });
});

describe("what is spoken of", () => {
  it("is the group whose rewards lie furthest apart", () => {
    const [near, far] = [made({ rewards: [1, 1.1] }).step.groups[0], made({ rewards: [0, 5] }).step.groups[0]];
    const flat = made({ rewards: [1, 1] }).step.groups[0];
    if (!near || !far || !flat) throw new Error("no group");
    const step = { ...made().step, groups: [flat, near, far] };
    expect(tellingGroup(step)).toBe(far);
    expect(tellingGroup({ ...step, groups: [flat] })).toBe(flat);
  });

  it("is the hardest pushed token of the best response, or what the person picked", () => {
    const scene = A();
    const found = tellingToken(scene.group, scene.analysis);
    expect(found?.pass.response).toBe(scene.best);
    const push = scene.analysis?.passes.get(found?.pass.key ?? "")?.push ?? new Float64Array();
    expect(Math.max(...push.map(Math.abs))).toBe(Math.abs(push[found?.token ?? -1] ?? NaN));
    const { step, manifest, metrics } = made();
    const picked = sceneOf({ step, manifest, metrics, spec: null, analysis: null, picked: { group: "1.0", pass: "0.2", token: 1 } });
    expect([picked?.pass?.key, picked?.token]).toEqual(["0.2", 1]);
  });
});
