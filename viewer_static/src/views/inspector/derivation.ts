/** How a token's push comes about, a line a step, in words and numbers. */
import type { Analysis, PassResult } from "../../analysis/types";
import { integer, number, short, signed } from "../../format";

export interface Line {
  what: string;
  /** The sum written out; "" where the value says it all. */
  how: string;
  value: string;
  /** A result rather than a step. */
  strong?: boolean;
  /** The branch of a min that was taken, and the one that was not. */
  branch?: "wins" | "loses";
}

/** Gates whose term is the ratio times the advantage. */
const PRODUCTS: ReadonlySet<string> = new Set(["ppo_clip", "plain_ratio"]);

const bracketed = (value: number) => (value < 0 ? `(${number(value)})` : number(value));

/** `now`, `then`: the token's log-probs; NaN where not known. */
export function derivation(analysis: Analysis, result: PassResult, i: number, now: number, then: number): Line[] {
  const at = (values: ArrayLike<number>) => values[i] as number;
  const { parts, mixture } = analysis.spec;
  const [ratio, advantage, low, high] = [at(result.ratio), at(result.advantages), at(result.low), at(result.high)];
  const lines: Line[] = [];
  const own = parts.ratio.part === "token";
  if (parts.ratio.part !== "one") {
    if (own && !Number.isNaN(now) && !Number.isNaN(then)) {
      lines.push({ what: "log-ratio", how: `${number(now)} − ${bracketed(then)}`, value: signed(now - then) });
    }
    lines.push({ what: "ratio r", how: own ? "e to the log-ratio" : "of more than this token", value: number(ratio) });
  }
  if (Number.isFinite(low) || Number.isFinite(high)) {
    lines.push({ what: "allowed", how: "", value: `${short(low)} … ${short(high)}` });
  }
  lines.push({ what: "advantage A", how: "", value: signed(advantage) });
  const code = at(result.clipped);
  if (!mixture.length && PRODUCTS.has(parts.gate.part) && code <= 3) {
    const held = code === 1 ? low : code === 2 ? high : Number(parts.gate.dual_clip);
    const clip = code > 0 && Number.isFinite(held);
    lines.push({ what: "r × A", how: `${number(ratio)} × ${bracketed(advantage)}`, value: signed(ratio * advantage), ...(clip ? { branch: "loses" as const } : {}) });
    if (clip) {
      lines.push({ what: code === 3 ? "c × A" : "clip(r) × A", how: `${short(held)} × ${bracketed(advantage)}`, value: signed(held * advantage), branch: "wins" });
    }
  }
  if (at(result.weight) !== 1) lines.push({ what: "× weight", how: "", value: number(at(result.weight)) });
  if (at(result.mask) !== 1) lines.push({ what: "× mask", how: "", value: number(at(result.mask)) });
  for (const { use, penalty } of result.penalties) {
    const value = at(penalty);
    const factor = Number(use.beta ?? use.coefficient);
    const how = factor ? `${short(factor)} × ${number(value / factor)}` : "constraint";
    lines.push({ what: `− ${words(use.part)}`, how, value: number(value) });
  }
  lines.push({ what: "objective", how: "", value: signed(at(result.tokenObjective)), strong: true });
  const share = at(result.aggregation);
  lines.push({ what: "weight in the mean", how: share > 0 && share <= 0.5 ? `about 1 in ${integer(Math.round(1 / share))}` : "", value: number(share) });
  if (result.penalties.length) {
    lines.push({ what: "push, policy term", how: "", value: signed(0 - at(result.policyWeight)) });
    lines.push({ what: "push, constraints", how: "", value: signed(0 - at(result.constraintWeight)) });
  }
  lines.push({ what: "push", how: "−gradient weight", value: signed(at(result.push)), strong: true });
  return lines;
}

/** A part's name as words: `reference_kl` is “reference kl”. */
function words(part: string): string {
  return part.replaceAll("_", " ");
}
