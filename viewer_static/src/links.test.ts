import { describe, expect, it } from "vitest";

import { lit } from "./links";

describe("what belongs together", () => {
  it("lights the counterparts in the other panes, and of its own kind only itself", () => {
    const found = lit({ kind: "metric", name: "kl" });
    expect([...found.metrics]).toEqual(["kl"]);
    expect([...found.slots]).toEqual(["constraint"]);
    expect([...found.channels]).toEqual(["token_kl"]);
    expect([...lit({ kind: "channel", name: "token_kl" }).metrics]).toEqual(["kl"]);
    expect([...lit({ kind: "slot", name: "gate" }).channels]).toEqual(["log_ratio", "token_objective", "push"]);
  });

  it("knows nothing of what it has never heard of", () => {
    expect([...lit(null).slots]).toEqual([]);
    expect([...lit({ kind: "metric", name: "__proto__" }).slots]).toEqual([]);
  });
});
