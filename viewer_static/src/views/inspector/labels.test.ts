import { describe, expect, it } from "vitest";

import type { StepResponse } from "../../bundle/step";
import { ownLabels, sharedLabels, written } from "./labels";

const of = (labels: [string, string | number][]) => written(new Map(labels));
const response = (labels: Record<string, string | number>) => ({ labels: new Map(Object.entries(labels)) }) as unknown as StepResponse;

describe("written", () => {
  it("shows a whole number whole and text as it is", () => {
    const { drawn, more } = of([["max_global_steps", 1234567], ["score", 0.25], ["low", -3], ["data_source", "gsm8k"]]);
    expect(drawn.map(({ name, value }) => [name, value])).toEqual([
      ["max_global_steps", "1234567"], ["score", "0.25"], ["low", "−3"], ["data_source", "gsm8k"],
    ]);
    expect(drawn[0]?.tip).toBe("max_global_steps: 1234567");
    expect(more).toBe(0);
  });

  it("cuts what is long, and keeps control characters and lines out", () => {
    const { drawn } = of([["uid", `a\nb\u202e${"x".repeat(1e6)}`]]);
    expect(drawn[0]?.value).toBe(`a b ${"x".repeat(19)}…`);
    expect(drawn[0]?.tip.length).toBeLessThan(320);
  });

  it("names identifiers last, whatever they are called", () => {
    const { drawn } = of([["uid", "6303b02f-b3cd-485d-a6bd-0123456789ab"], ["data_source", "gsm8k"], ["score", 1]]);
    expect(drawn.map(({ name, isIdentifier }) => [name, isIdentifier])).toEqual([["data_source", false], ["score", false], ["uid", true]]);
  });

  it("says in one which weights sampled a response", () => {
    const said = (...steps: [number, number]) => of([["min_global_steps", steps[0]], ["acc", 1], ["max_global_steps", steps[1]]]).drawn.map(({ name, value }) => `${name} ${value}`);
    expect(said(3, 3)).toEqual(["sampled with weights of step 3", "acc 1"]);
    expect(said(1234, 1236)).toEqual(["sampled with weights of steps 1234 to 1236", "acc 1"]);
    expect(of([["min_global_steps", 3]]).drawn[0]?.name).toBe("min_global_steps");
  });

  it("draws a few and counts the others", () => {
    const { drawn, more } = of(Array.from({ length: 30 }, (_, i) => [`extra ${i}`, i]));
    expect([drawn.length, more]).toEqual([8, 22]);
  });
});

describe("sharedLabels", () => {
  it("are those that are the same for every response, and the others are its own", () => {
    const [a, b] = [response({ uid: "u", step: 3, acc: 1 }), response({ uid: "u", step: 4 })];
    const shared = sharedLabels([a, b]);
    expect([...shared]).toEqual([["uid", "u"]]);
    expect([...ownLabels(a, shared)]).toEqual([["step", 3], ["acc", 1]]);
    expect([...sharedLabels([a])]).toEqual([]);
    expect([...sharedLabels([])]).toEqual([]);
  });
});
