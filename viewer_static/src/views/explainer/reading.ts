/** One token as an algorithm sees it: where its numbers are, all of them the engine's or as captured. */
import type { PassResult } from "../../analysis";
import type { Pass, StepGroup, StepResponse } from "../../bundle/step";
import { type AlgorithmSpec, isOff, type PartUse } from "../../objective";
import type { Stages } from "./stages";

export interface Reading {
  spec: AlgorithmSpec;
  group: StepGroup;
  response: StepResponse;
  pass: Pass;
  /** Index in the response. */
  token: number;
  /** `null` where the algorithm could not be computed for this pass. */
  result: PassResult | null;
  stages: Stages;
  /** The constant length a loss may divide by, as the trainer had it; NaN where it is not known. */
  constantLength: number;
  /** Whether it is of an evaluation, which trains nothing. */
  evaluation: boolean;
}

/** A captured channel at the token; NaN where it is not known. */
export function channel(of: Reading | null, name: string): number {
  return of?.pass.tokens?.channels.get(name)?.[of.token] ?? NaN;
}

/** A result at the token; NaN where it is not known. The engine takes what does not count as 0, which is no ratio and no advantage. */
export function at(of: Reading | null, name: ResultName): number {
  if (of && (name === "ratio" || name === "advantages") && !counts(of)) return NaN;
  return of?.result?.[name][of.token] ?? NaN;
}

export type ResultName =
  | "advantages" | "ratio" | "low" | "high" | "tokenObjective" | "policyWeight" | "constraintWeight" | "gradientWeight" | "push"
  | "clipped" | "mask" | "weight" | "aggregation";

/** Whether the token counts in the loss at all. */
export function counts(of: Reading): boolean {
  return Number(of.pass.tokens?.mask[of.token] ?? 0) > 0;
}

/** Tokens of the response that count. */
export function counted(of: Reading): number {
  const mask = of.pass.tokens?.mask ?? [];
  let sum = 0;
  for (let t = 0; t < mask.length; t++) sum += Number(mask[t]) > 0 ? 1 : 0;
  return sum;
}

/** The policy term before masks, weights and share: what the gate made of ratio and advantage. */
export function gateValue(of: Reading | null): number {
  if (!of?.result) return NaN;
  const penalty = of.result.penalties.reduce((sum, each) => sum + (each.penalty[of.token] ?? 0), 0);
  const factor = at(of, "mask") * at(of, "weight");
  return factor === 0 ? NaN : (at(of, "tokenObjective") + penalty) / factor;
}

/** A constraint's penalty and its share of the gradient weight at the token. */
export function penaltyOf(of: Reading | null, use: PartUse): { penalty: number; weight: number } {
  const none = { penalty: NaN, weight: NaN };
  if (!of?.result || isOff(use)) return none;
  const alike = of.spec.parts.constraint.filter((each) => each.part === use.part && !isOff(each));
  const results = of.result.penalties.filter((each) => each.use.part === use.part);
  const found = results[alike.indexOf(use)];
  return found ? { penalty: found.penalty[of.token] ?? NaN, weight: found.weight[of.token] ?? NaN } : none;
}

/** Mean and standard deviation of some values, those aside that are not known or not finite. */
export function spread(values: Iterable<number>, ddof: number): { n: number; mean: number; std: number } {
  const known = [...values].filter((value) => Number.isFinite(value));
  const n = known.length;
  const mean = known.reduce((a, b) => a + b, 0) / n;
  const squares = known.reduce((a, b) => a + (b - mean) ** 2, 0);
  return { n, mean, std: n > ddof ? Math.sqrt(squares / (n - ddof)) : NaN };
}
