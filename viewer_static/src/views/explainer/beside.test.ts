import { describe, expect, it } from "vitest";

import { alike } from "./beside";
import type { SlotCards } from "./cards";

function gate(outcome: string, idle = ""): SlotCards {
  const part = { slot: "gate" as const, path: "gate", use: { part: "ppo_clip" }, title: "PPO clip", latex: "", terms: [], outcome, sentence: "", explanation: "", source: "", scope: "token", settings: [] };
  return { slot: "gate", name: "Gate", question: "", parts: idle ? [] : [part], idle };
}

describe("the same part of two algorithms", () => {
  const names = ["GRPO", "PPO"] as const;

  it("says a number of both only where it is that of both", () => {
    expect(alike(gate("+1.799"), gate("+1.799"), names)).toEqual({ kind: "equal", words: "policy term = +1.799" });
    expect(alike(gate("+1.799"), gate("+1.85"), names)).toEqual({ kind: "apart", words: "policy term = +1.799 and +1.85" });
  });

  it("says which one could not be computed", () => {
    expect(alike(gate("+1.799"), gate(""), names)).toEqual({ kind: "lacking", words: "policy term = +1.799; not computed for PPO" });
    expect(alike(gate(""), gate("+1.799"), names)).toEqual({ kind: "lacking", words: "policy term = +1.799; not computed for GRPO" });
  });

  it("names the part where neither has a number, and what is idle as idle", () => {
    expect(alike(gate(""), gate(""), names)).toEqual({ kind: "equal", words: "PPO clip" });
    expect(alike(gate("", "none"), gate("", "none"), names)).toEqual({ kind: "equal", words: "none" });
  });
});
