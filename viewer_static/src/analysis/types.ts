/** What an algorithm makes of an update that was captured: per pass, and in all. */
import type { Pass } from "../bundle/step";
import type { AlgorithmSpec, Evaluation, PartUse } from "../objective/types";

/** Advantages smaller than this are rounding errors of a mean. */
export const MEAN_ROUNDING = 1e-3;

/** What an algorithm makes of one forward pass over one response. Arrays have a value a token of it. */
export interface PassResult {
  readonly pass: Pass;
  readonly advantages: Float64Array;
  readonly ratio: Float64Array;
  readonly low: Float64Array;
  readonly high: Float64Array;
  readonly tokenObjective: Float64Array;
  /** ∂loss/∂log_probs: of the policy term, of constraints, and their sum. */
  readonly policyWeight: Float64Array;
  readonly constraintWeight: Float64Array;
  readonly gradientWeight: Float64Array;
  /** −gradientWeight: what a person reads as direction. */
  readonly push: Float64Array;
  /** Codes of `CLIPPED`. */
  readonly clipped: Uint8Array;
  /** Factor of masks, 0 where the policy term leaves the token out. */
  readonly mask: Float64Array;
  /** Detached weights. */
  readonly weight: Float64Array;
  /** The token's share of the loss. */
  readonly aggregation: Float64Array;
  /** A penalty a constraint, in the order of the algorithm's. */
  readonly penalties: readonly { use: PartUse; penalty: Float64Array; weight: Float64Array }[];
}

/** One forward pass of the trainer over several responses, recomputed. */
export interface MicroBatchResult {
  readonly rank: number;
  readonly number: number;
  readonly evaluation: Evaluation;
  /** Whether every response of the forward pass is there: only then is the loss that of the trainer. */
  readonly whole: boolean;
  /** The trainer's loss without entropy bonus and router loss, as captured. */
  readonly loss: number | null;
  /** Recomputed here minus the trainer's, where both are known and the batch is whole. */
  readonly gap: number | null;
  readonly tolerance: number;
}

/** An algorithm on an update. */
export interface Analysis {
  readonly spec: AlgorithmSpec;
  /** The run's own algorithm, as it was run; else a what-if. */
  readonly own: boolean;
  /** Why nothing could be computed, in one line that says what is missing and how to capture it; "" where it could. */
  readonly missing: string;
  /** What is only approximate, one sentence each. */
  readonly approximate: readonly string[];
  /** What a reader should know, one sentence each: whose advantages were taken, values that were not finite. */
  readonly notes: readonly string[];
  /** By `Pass.key`. */
  readonly passes: ReadonlyMap<string, PassResult>;
  readonly microBatches: readonly MicroBatchResult[];
  /** Sum over the micro-batches that are there, averaged over ranks: the loss of the update; of the captured part where not all is. */
  readonly loss: number;
  readonly policyLoss: number;
  readonly constraintLoss: number;
  /** Whether all responses of the update are there, so that `loss` is the whole update's. */
  readonly whole: boolean;
}

/** Whether what is shown is the trainer's own: the proof behind the badge. */
export interface Reconciled {
  /** `reproduced`: within tolerance; `off`: above it; `unknown`: it could not be compared, `why` says so. */
  readonly status: "reproduced" | "off" | "unknown";
  readonly why: string;
  /** Largest |gap| recomputed in this page, and its tolerance. */
  readonly gap: number | null;
  readonly tolerance: number | null;
  /** Largest |gap| that was stored when the update was captured. */
  readonly storedGap: number | null;
  readonly storedTolerance: number | null;
  /** A row a micro-batch: the trainer's loss, the one recomputed here. */
  readonly rows: readonly { name: string; trainer: number | null; recomputed: number; gap: number | null }[];
  /** The run's notes on its algorithm (settings that are not understood). */
  readonly notes: readonly string[];
}

/** Tokens of which a what-if changes what the update does. */
export interface Changed {
  readonly pass: string;
  readonly token: number;
  readonly what: "sign" | "vanishes" | "appears";
  readonly before: number;
  readonly after: number;
}
