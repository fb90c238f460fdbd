/** A definition is never trusted: its form is checked, in the words of the Python package. */
import { describe, expect, test } from "vitest";
import { AlgorithmError, algorithms, evaluate, makeBatch, specFrom } from ".";

const GATE = { part: "ppo_clip" };
const MEAN = { part: "token_mean" };
const parts = { gate: GATE, aggregation: MEAN };

test("what is left out has its default", () => {
  const spec = specFrom({ id: "mine", name: "Mine", parts });
  expect(spec).toMatchObject({ title: "", year: null, parent: null, exact: false, mixture: [], display: null });
  expect(JSON.parse(JSON.stringify(spec.parts))).toEqual({
    filter: [],
    reward: [],
    baseline: { part: "none" },
    scale: [],
    modulation: [],
    ratio: { part: "token" },
    bounds: { part: "unbounded" },
    gate: GATE,
    weight: [],
    mask: [],
    constraint: [],
    aggregation: MEAN,
  });
});

test("an algorithm of the registry is the same read again", () => {
  for (const spec of algorithms.values()) expect(specFrom(JSON.parse(JSON.stringify(spec)))).toEqual(spec);
});

test.each([
  [{ id: "x", name: "x" }, "parts: every algorithm needs them"],
  [{ id: "x", name: "x", parts: { gate: GATE } }, "parts.aggregation: every algorithm needs one"],
  [{ id: "x", name: "x", parts: { gait: GATE, aggregation: MEAN } }, "parts.gait: no such slot; did you mean gate?"],
  [{ id: "x", name: "x", parts: { ...parts, gate: "ppo_clip" } }, 'parts.gate: write {"part": "ppo_clip"}'],
  [{ id: "x", name: "x", parts: { ...parts, mask: { part: "prefix" } } }, "parts.mask: write it in [ ]"],
  [
    { id: "x", name: "x", parts: { ...parts, mask: 3 } },
    'parts.mask: a list is needed, as in [{"part": "truncated_responses"}], or [] for none',
  ],
  [{ id: 3, name: "x", parts }, "id: a text is needed, not 3"],
  [{ id: " ", name: "x", parts }, "id: a text is needed that is not empty"],
  [{ id: "x", name: "x", parts: { ...parts, aggregation: {} } }, 'parts.aggregation.part: name the part, as in {"part": "token_mean"}'],
  [{ id: "x", nmae: "x", parts: {} }, "nmae: no such field; did you mean name?"],
  [{ id: "x", name: "x", parts, mixture: [{}] }, "mixture.0.source: every component needs one"],
  [{ id: "x", name: "x", parts, mixture: [{ source: -1 }] }, "mixture.0.source: 0 (sampled by the policy) or above is needed, not -1"],
  [{ id: "x", name: "x", parts, mixture: [{ source: 0, statistics: "mine" }] }, "mixture.0.statistics: 'mine' is not one of own, all"],
  [{ id: "x", name: "x", parts, mixture: {} }, "mixture: a list is needed, not an object"],
  [{ id: "x", name: "x", parts: { ...parts, gate: { part: ["a"] } } }, "parts.gate.part: a text is needed, not a list"],
  [{ id: "x", name: "x", parts: { ...parts, gate: [GATE] } }, "parts.gate: one part is needed here, not a list"],
  [{ id: "x", name: "x", parts: { ...parts, gate: null } }, 'parts.gate: an object is needed, as in {"part": "ppo_clip"}, not null'],
  [{ id: "x", name: "x", parts, year: "soon" }, "year: an integer is needed, not 'soon'"],
  [{ id: "x", name: "x", parts, exact: 1 }, "exact: true or false is needed, not 1"],
  [null, "definition: an object { } is needed, not null"],
  [[], "definition: an object { } is needed, not a list"],
  ["grpo", "definition: an object { } is needed, not 'grpo'"],
])("%j is refused", (json, message) => {
  expect(() => specFrom(json)).toThrow(new AlgorithmError(message));
});

describe("hostile", () => {
  test.each([
    '{"id": "x", "name": "x", "__proto__": {"exact": true}, "parts": {}}',
    '{"id": "x", "name": "x", "parts": {"__proto__": {}, "gate": {"part": "ppo_clip"}, "aggregation": {"part": "token_mean"}}}',
    '{"id": "x", "name": "x", "parts": {"gate": {"part": "ppo_clip", "__proto__": {"a": 1}}, "aggregation": {"part": "token_mean"}}}',
  ])("%s is refused and changes no other object", (text) => {
    expect(() => specFrom(JSON.parse(text))).toThrow(AlgorithmError);
    expect(({} as Record<string, unknown>).a).toBeUndefined();
  });

  test.each(["constructor", "toString", "hasOwnProperty", "mine"])("a part called %s is kept and not computed", (part) => {
    const spec = specFrom({ id: "x", name: "x", parts: { ...parts, gate: { part, own: { deep: [1] } } } });
    expect(spec.parts.gate.part).toBe(part);
    const batch = makeBatch({ B: 1, T: 1, arrays: { log_probs: [-1], old_log_probs: [-1], mask: [1] } });
    expect(() => evaluate(spec, batch)).toThrow(
      `parts.gate.part: no part '${part}' for the slot gate; a part of your own is computed in Python`,
    );
  });

  test.each([
    [{ ...parts, gate: { ...GATE, dual_clip: "3" } }, "parts.gate.dual_clip: a number is needed, not '3'"],
    [{ ...parts, gate: { ...GATE, dual_clip: { valueOf: 3 } } }, "parts.gate.dual_clip: a number is needed, not an object"],
    [{ ...parts, ratio: { part: "token", reference: "__proto__" } }, "parts.ratio.reference: no channel '__proto__' (there are "],
    [{ ...parts, gate: { ...GATE, toString: 1 } }, "parts.gate.toString: ppo_clip has no such hyper-parameter"],
  ])("%j is not computed", (given, message) => {
    const batch = makeBatch({ B: 1, T: 1, arrays: { log_probs: [-1], old_log_probs: [-1], mask: [1] } });
    expect(() => evaluate(specFrom({ id: "x", name: "x", parts: given }), batch)).toThrow(message);
  });

  test("a message is one line however long a name is", () => {
    const name = `${"n".repeat(1e5)}\n`;
    const error = (() => {
      try {
        specFrom({ id: "x", name: "x", parts: { [name]: {} } });
      } catch (thrown) {
        return thrown as Error;
      }
      return new Error();
    })();
    expect(error.message.length).toBeLessThan(400);
    expect(error.message).not.toContain("\n");
  });
});
