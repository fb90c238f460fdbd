import { describe, expect, it } from "vitest";

import type { ResponseTokens } from "./bundle/join";
import { available, channelNamed, defaultChannel, valuesOf } from "./channels";

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
    expect(available(new Set(["zeta", "old_log_probs", "log_probs", "entropies"])).map((c) => c.name)).toEqual([
      "log_ratio", "entropies", "probability", "log_probs", "old_log_probs", "zeta",
    ]);
    expect(channelNamed("zeta").label).toBe("zeta");
  });
});

describe("defaultChannel", () => {
  const stored = new Set(["log_probs", "old_log_probs", "entropies"]);

  it("is the log-ratio where something has moved", () => {
    expect(defaultChannel(stored, [tokens({ log_probs: [-1, -2], old_log_probs: [-1, -2.1] })])).toBe("log_ratio");
  });

  it("is the entropy where nothing has, then the log-prob, then what there is", () => {
    const still = [tokens({ log_probs: [-1, -2], old_log_probs: [-1, NaN] })];
    expect(defaultChannel(stored, still)).toBe("entropies");
    expect(defaultChannel(new Set(["log_probs", "old_log_probs"]), still)).toBe("log_probs");
    expect(defaultChannel(new Set(["advantages"]), [])).toBe("advantages");
    expect(defaultChannel(new Set(), [])).toBeNull();
  });
});
