import { describe, expect, it } from "vitest";

import type { ResponseTokens } from "./bundle/join";
import { available, channelNamed, defaultChannel, relativeTo, valuesOf } from "./channels";

function tokens(channels: Record<string, number[]>): ResponseTokens {
  const map = new Map(Object.entries(channels).map(([name, values]) => [name, Float32Array.from(values)]));
  const n = Object.values(channels)[0]?.length ?? 0;
  return { n, ids: new Array<number>(n).fill(0), strings: new Array<string>(n).fill("x"), mask: new Array<number>(n).fill(1), reason: null, channels: map };
}

describe("derived channels", () => {
  const response = tokens({ log_probs: [-1, -2], old_log_probs: [-1.5, NaN], rollout_log_probs: [-1.5, -2] });

  it("are computed from stored ones, NaN where one is missing", () => {
    expect([...(valuesOf(response, "log_ratio") ?? [])]).toEqual([0.5, NaN]);
    expect([...(valuesOf(response, "mismatch") ?? [])]).toEqual([0, NaN]);
    expect(valuesOf(response, "probability")?.[0]).toBeCloseTo(Math.exp(-1), 6);
  });

  it("are not known without them", () => {
    expect(valuesOf(tokens({ log_probs: [-1] }), "log_ratio")).toBeNull();
    expect(valuesOf(response, "entropies")).toBeNull();
  });
});

describe("available", () => {
  it("lists what can be shown in the order of the switch, unknown channels last", () => {
    expect(available(new Set(["zeta", "old_log_probs", "log_probs", "entropies", "push"])).map((c) => c.name)).toEqual([
      "push", "log_ratio", "entropies", "probability", "log_probs", "old_log_probs", "zeta",
    ]);
    expect(channelNamed("zeta").label).toBe("zeta");
  });
});

describe("relativeTo", () => {
  it("is about 0 both ways, without the channel's own end", () => {
    expect(relativeTo(channelNamed("probability"))).toMatchObject({ scale: "diverging", centre: 0, label: "Probability" });
    expect(relativeTo(channelNamed("probability")).limit).toBeUndefined();
  });
});

describe("defaultChannel", () => {
  const stored = new Set(["log_probs", "old_log_probs", "entropies"]);
  const first = (names: ReadonlySet<string>, values: Record<string, number[]>) =>
    defaultChannel(names, (name) => (values[name] ? [values[name]] : []));

  it("is the push where there is one, then the log-ratio where something has moved", () => {
    expect(first(new Set([...stored, "push"]), { push: [0, 0.1], log_ratio: [0, 0.1] })).toBe("push");
    expect(first(new Set([...stored, "push"]), { push: [0, 0], log_ratio: [0, 0.1] })).toBe("log_ratio");
    expect(first(stored, { log_ratio: [0, NaN, 0.1] })).toBe("log_ratio");
  });

  it("is the entropy where nothing has, then the log-prob, then what there is", () => {
    expect(first(stored, { log_ratio: [0, NaN] })).toBe("entropies");
    expect(first(new Set(["log_probs", "old_log_probs"]), { log_ratio: [0] })).toBe("log_probs");
    expect(first(new Set(["advantages"]), {})).toBe("advantages");
    expect(first(new Set(), {})).toBeNull();
  });
});
