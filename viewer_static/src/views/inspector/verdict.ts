/** What an update does to a token, in a sentence or two. */
import type { PassResult } from "../../analysis/types";
import { MASK_REASONS } from "../../channels";
import { change, number } from "../../format";
import { silences } from "../../objective/types";

export interface Judged {
  counts: boolean;
  /** Code of `MASK_REASONS`; 0 for none. */
  reason: number;
  /** Whether the update trained on the response. */
  measured: boolean;
  /** Whether the token was measured on the very policy that sampled it. */
  fresh: boolean;
  /** NaN where it is not known. */
  logRatio: number;
  result: PassResult | null;
  index: number;
  /** Whose ratio it is: the token's own, or that of something larger, in words. */
  ratioOf: "" | "whole response" | "segment";
  /** Nothing is trained on an evaluation. */
  evaluation: boolean;
}

/** `22 % more likely`, `2.3 times as likely`: from the ratio. */
function moved(ratio: number): string {
  if (ratio >= 2) return `${number(ratio, 2)} times as likely as when sampled`;
  return `${number(Math.abs(ratio - 1) * 100, 2)} % ${ratio > 1 ? "more" : "less"} likely than when sampled`;
}

function clipped({ result, index, ratioOf }: Judged): string {
  if (!result) return "";
  const at = (values: ArrayLike<number>) => values[index] as number;
  const ratio = at(result.ratio);
  const already = `already ${moved(ratio)}, so the policy term pushes no further.`;
  const code = at(result.clipped);
  if (ratioOf && silences(code)) {
    const where = ["below the range", "above the range", "above the dual clip though it did badly", "above the upper cap", "outside the trust region"][code - 1];
    return `Clipped: the ratio of its ${ratioOf}, ${number(ratio, 5)}, is ${where}, so the policy term pushes no further.`;
  }
  switch (code) {
    case 1:
      return `Clipped: below the range, whose lower end is ${number(at(result.low), 3)}; ${already}`;
    case 2:
      return `Clipped: above the range, whose upper end is ${number(at(result.high), 3)}; ${already}`;
    case 3:
      return `Clipped by the dual clip: ${moved(ratio)} though it did badly, so the policy term leaves it alone.`;
    case 4:
      return `Clipped by the upper cap: ${moved(ratio)}, beyond what is trusted, so the policy term leaves it alone.`;
    case 5:
      return "Clipped: outside the trust region, so the policy term leaves it alone.";
    case 6:
      return `Capped from below: its ratio ${number(ratio, 3)} counts as ${number(at(result.low), 3)}, and it is still pushed.`;
    case 7:
      return `Capped from above: its ratio ${number(ratio, 3)} counts as ${number(at(result.high), 3)}, and it is still pushed.`;
    default:
      return "";
  }
}

export function verdict(of: Judged): string {
  const { result, index, logRatio } = of;
  if (!of.counts) {
    const reason = MASK_REASONS[of.reason];
    return `Does not count in the loss${reason ? `: ${reason}` : ""}.`;
  }
  if (!of.measured) return "This update did not train on the response, so only what the rollout fixed is known.";
  const gate = clipped(of);
  if (gate) {
    const constraint = result?.constraintWeight[index] ?? 0;
    const still = constraint && silences(result?.clipped[index] ?? 0);
    return still ? `${gate} A constraint still makes it ${constraint < 0 ? "more" : "less"} likely.` : gate;
  }
  const history = of.fresh ? "Measured on the very policy that sampled it, so nothing has changed yet." : change(logRatio);
  if (!result) return history;
  if (result.mask[index] === 0) return `A mask of the algorithm leaves it out of the policy term. ${history}`;
  const push = result.push[index] as number;
  if (of.evaluation) {
    const would = push > 0 ? "make it more likely" : push < 0 ? "make it less likely" : "leave it alone";
    return `An evaluation trains nothing: an update on it would ${would}. ${history}`;
  }
  const way =
    push > 0 ? "Pushed to be more likely." : push < 0 ? "Pushed to be less likely." : result.advantages[index] === 0 ? "No push: its advantage is 0." : "No push.";
  return `${way} ${history}`;
}
