/** How far a loss computed here is from the trainer's, and how far rounding may take it: `unipo_hooks.reconcile`. */
import type { AlgorithmSpec, Evaluation } from "../objective";
import type { MicroBatch } from "./batches";

/** Type the trainer computed in → largest gap, in units of max(1, Σ |aggregation × objective|). */
const HALF = 1e-2;
const TOLERANCES: Readonly<Record<string, number>> = { float64: 1e-6, float32: 1e-6, float16: 2e-3, bfloat16: HALF };

/** Ratios whose loss TRL averages over responses, whether they have a token that counts or not. */
const OF_RESPONSES: ReadonlySet<string> = new Set(["sequence_product", "clipped_sequence_mean"]);

export interface Gap {
  /** Recomputed minus the trainer's; `null` where they cannot be compared. */
  readonly gap: number | null;
  readonly tolerance: number;
}

/** `spec` is the run's own algorithm; `null` where it is another that was computed. */
export function gapOf(of: MicroBatch, evaluation: Evaluation, spec: AlgorithmSpec | null): Gap {
  const tolerance = (TOLERANCES[of.line.dtype] ?? HALF) * Math.max(1, evaluation.magnitude);
  if (!spec) return { gap: null, tolerance };
  const recomputed = recomputedLoss(of, evaluation, spec);
  const known = of.whole && of.loss !== null && !bonusIsUnknown(of);
  return { gap: known ? recomputed - of.loss! : null, tolerance: tolerance * sizeOfSums(of, spec) };
}

/** The loss of a forward pass, as a trainer adds it up. */
export function recomputedLoss(of: MicroBatch, evaluation: Evaluation, spec: AlgorithmSpec): number {
  return evaluation.loss + ofResponsesWithoutTokens(of, spec);
}

/** Whether the trainer's loss holds an entropy bonus of unknown size. */
export function bonusIsUnknown({ line }: Pick<MicroBatch, "line">): boolean {
  return Boolean(line.entropy_coef) && line.entropy_bonus === null;
}

/**
 * Largest |Σ log π| of a response where the trainer takes its ratio of such sums, as RLOO does; at least 1: a float32 is
 * rounded in proportion to its size.
 */
function sizeOfSums({ passes, T, arrays }: MicroBatch, { parts }: AlgorithmSpec): number {
  if (parts.ratio.part !== "sequence_product" || parts.aggregation.part !== "sequence_mean_token_mean") return 1;
  const mask = arrays.mask as ArrayLike<number>;
  const logProbs = arrays.log_probs as ArrayLike<number>;
  let largest = 1;
  for (let b = 0; b < passes.length; b++) {
    let sum = 0;
    for (let i = b * T; i < (b + 1) * T; i++) if (mask[i]! > 0) sum += logProbs[i]! || 0;
    largest = Math.max(largest, Math.abs(sum));
  }
  return largest;
}

/**
 * What responses none of whose tokens count add to the loss: nothing where it is a mean over tokens. TRL's RLOO and GMPO
 * take a mean over responses, in which such a one has the ratio 1: −A, a constant no token has a share in.
 */
function ofResponsesWithoutTokens({ passes, T, arrays, normalisers }: MicroBatch, { parts }: AlgorithmSpec): number {
  if (!OF_RESPONSES.has(parts.ratio.part) || parts.aggregation.part !== "sequence_mean_token_mean") return 0;
  const mask = arrays.mask as ArrayLike<number>;
  const advantages = arrays.advantages as ArrayLike<number> | undefined;
  if (!advantages || advantages.length !== passes.length) return 0;
  let total = 0;
  for (let b = 0; b < passes.length; b++) {
    let counted = false;
    for (let i = b * T; i < (b + 1) * T; i++) if (mask[i]! > 0) counted = true;
    if (!counted) total -= advantages[b]!;
  }
  return total / passes.length / (normalisers.accumulationSteps ?? 1);
}
