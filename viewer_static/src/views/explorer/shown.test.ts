import { describe, expect, it } from "vitest";

import { metricOf } from "../../metrics";
import { changeText, rolloutsText, valueText } from "./shown";

const ratio = metricOf("importance_sampling_ratio");
const clipped = metricOf("clip_fraction");

describe("numbers of metrics", () => {
  it("have as many digits as show a change in the run", () => {
    expect(valueText(ratio, 1.00312, { low: 0.99, high: 1.01 })).toBe("1.003");
    expect(valueText(ratio, 0.96, { low: 0.96, high: 1.1 })).toBe("0.96");
    expect(valueText(metricOf("response_length"), 91.3125, { low: 90, high: 96 })).toBe("91.3");
    expect(valueText(clipped, 0.347, { low: 0, high: 0.35 })).toBe("35 %");
    expect(valueText(clipped, 0, { low: 0, high: 0 })).toBe("0 %");
    expect(valueText(ratio, 1.9e-9, { low: 0, high: 1 })).toBe("2e−9");
    expect(valueText(ratio, NaN, { low: NaN, high: NaN })).toBe("–");
  });

  it("say how they changed", () => {
    expect(changeText(ratio, 1, 1)).toBe("held");
    expect(changeText(ratio, 1.5, 1)).toBe("▴ 0.50");
    expect(changeText(clipped, 0.01, 0.03)).toBe("▾ 2.0 %");
    expect(changeText(ratio, 1, NaN)).toBe("–");
  });

  it("name the rollouts", () => {
    expect([rolloutsText([]), rolloutsText([3]), rolloutsText([5, 3])]).toEqual(["", "rollout 3", "rollouts 3–5"]);
  });
});
