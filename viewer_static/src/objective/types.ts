/**
 * The engine's words: what goes in, what comes out. The same parts as `unipo_hooks.objective`, held by the same vectors
 * (`tests/vectors.json`).
 *
 * Arrays are flat and row-major, in float64: `BT` has B·T values (token t of response b at `b * T + t`), `B` one a
 * response, `BK` one a response and reward function. Log-probs are natural logarithms.
 */

/** A part in a slot, by name, and the hyper-parameters it is used with. */
export interface PartUse {
  readonly part: string;
  readonly [hyperParameter: string]: unknown;
}

/** `unipo_hooks.algorithm_spec.Parts`: one part a slot, or a list where the slot takes several, applied in order. */
export interface Parts {
  readonly filter: readonly PartUse[];
  readonly reward: readonly PartUse[];
  readonly baseline: PartUse;
  readonly scale: readonly PartUse[];
  readonly modulation: readonly PartUse[];
  readonly ratio: PartUse;
  readonly bounds: PartUse;
  readonly gate: PartUse;
  readonly weight: readonly PartUse[];
  readonly mask: readonly PartUse[];
  readonly constraint: readonly PartUse[];
  readonly aggregation: PartUse;
}

export type Slot = keyof Parts;
export type Heading = "advantage" | "objective" | "constraint" | "mask" | "aggregation";

/** One part of a mixture: the rows it is for, and the slots in which it differs. */
export interface Component {
  readonly source: number;
  readonly coefficient: number;
  readonly denominator: "own" | "all";
  readonly statistics: "own" | "all";
  readonly parts: Partial<Parts>;
}

/** `unipo_hooks.algorithm_spec.AlgorithmSpec`, defaults filled in. */
export interface AlgorithmSpec {
  readonly id: string;
  readonly name: string;
  readonly title: string;
  readonly year: number | null;
  readonly source: string;
  readonly family: string;
  readonly parent: string | null;
  readonly story: string;
  readonly changed: string;
  readonly exact: boolean;
  readonly inexact: string;
  readonly parts: Parts;
  readonly mixture: readonly Component[];
  /** Cards of UNIPO's own format, of an algorithm that is only shown. */
  readonly display: Readonly<Record<string, unknown>> | null;
}

export type Scope = "token" | "response" | "group" | "batch" | "history";

/** What is said of a hyper-parameter in `registry/parts/{slot}.json`. */
export interface ParameterDescription {
  readonly default: unknown;
  readonly symbol: string;
  readonly meaning: string;
  readonly nullable?: boolean;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly above?: number;
  readonly below?: number;
  readonly choices?: readonly unknown[];
  readonly [further: string]: unknown;
}

/** What is said of a part in `registry/parts/{slot}.json`. */
export interface PartDescription {
  readonly title: string;
  readonly scope: Scope;
  readonly needs?: readonly string[];
  readonly uses?: readonly string[];
  readonly parameters?: Readonly<Record<string, ParameterDescription>>;
  readonly latex: string;
  readonly explanation: string;
  readonly source?: string;
}

/** A hyper-parameter an algorithm can be given another value of. */
export interface HyperParameter {
  /** What `withHyperParameters` takes: `gate.dual_clip`, `constraint.0.beta`, `mixture.1.gate.gamma`. */
  readonly path: string;
  readonly slot: Slot;
  readonly part: string;
  readonly name: string;
  readonly value: unknown;
  readonly description: ParameterDescription;
}

/** `unipo_hooks.objective.inputs.Normalisers`. */
export interface Normalisers {
  readonly accumulationSteps: number;
  readonly tokens: number | null;
  readonly microBatchTokens: number | null;
  readonly microBatchRows: number | null;
  readonly microBatchCountedRows: number | null;
  readonly microBatchGroups: number | null;
  readonly rows: number | null;
  readonly length: number | null;
  readonly dataParallelSize: number;
}

/** Numbers; texts only for what is compared with each other (`group`, `anchors`, `answers`). */
export type InputArray = ArrayLike<number> | readonly string[];

/** What `makeBatch` takes. A channel that is `B|BT` is per response where it has B values. */
export interface BatchInput {
  readonly B: number;
  readonly T: number;
  readonly arrays: Readonly<Record<string, InputArray>>;
  readonly normalisers?: Partial<Normalisers>;
  /** B: how often each response takes part before the algorithm's own filters; once, where it is left out. */
  readonly often?: ArrayLike<number>;
}

/** Codes of `Evaluation.clipped`, in words; up to 5 the policy term is silent, 6 and 7 push with a capped ratio. */
export const CLIPPED: Readonly<Record<number, string>> = {
  1: "below the range",
  2: "above the range",
  3: "dual clip",
  4: "upper cap",
  5: "outside the trust region",
  6: "capped from below, still pushing",
  7: "capped from above, still pushing",
};

/** Whether a code of `CLIPPED` silences the policy term; a constraint may still push. */
export function silences(code: number): boolean {
  return code >= 1 && code <= 5;
}

/** One constraint's share, so that each can be shown apart. */
export interface ConstraintTerm {
  /** Which of `parts.constraint`. */
  readonly number: number;
  readonly use: PartUse;
  /** What it takes from the token's objective, before aggregation (BT); 0 throughout where it is over the vocabulary. */
  readonly penalty: Float64Array;
  /** Its share of the gradient weight (BT). */
  readonly weight: Float64Array;
  readonly loss: number;
  /** False for a term over the whole vocabulary: no sampled token is answerable for it. */
  readonly attributable: boolean;
}

/** An objective on a batch: `unipo_hooks.objective.evaluate.Evaluation`. Arrays are BT, 0 where a token does not count. */
export interface Evaluation {
  readonly spec: AlgorithmSpec;
  readonly B: number;
  readonly T: number;
  readonly advantages: Float64Array;
  readonly ratio: Float64Array;
  readonly logRatio: Float64Array;
  /** What the ratio may be; −Infinity and Infinity where there is no bound. */
  readonly low: Float64Array;
  readonly high: Float64Array;
  readonly policyObjective: Float64Array;
  readonly constraint: Float64Array;
  /** policyObjective − constraint. */
  readonly tokenObjective: Float64Array;
  readonly policyWeight: Float64Array;
  readonly constraintWeight: Float64Array;
  /** policyWeight + constraintWeight = ∂loss/∂log_probs ÷ data-parallel ranks. */
  readonly gradientWeight: Float64Array;
  readonly clipped: Uint8Array;
  /** Factor of masks on the policy term. */
  readonly mask: Float64Array;
  /** Detached weights on the policy term. */
  readonly weight: Float64Array;
  readonly aggregation: Float64Array;
  readonly constraints: readonly ConstraintTerm[];
  readonly policyLoss: number;
  readonly constraintLoss: number;
  readonly entropyLoss: number;
  readonly loss: number;
  /** Σ |aggregation × objective|: what an error of the loss is compared with. */
  readonly magnitude: number;
  readonly invalid: Uint8Array;
  readonly notes: readonly string[];
}

/** A slot in which two algorithms differ. */
export interface Difference {
  readonly slot: Slot | "mixture";
  readonly heading: string;
  readonly a: string;
  readonly b: string;
}

/** What is wrong with an algorithm's definition, in one line with its JSON path. */
export class AlgorithmError extends Error {}

/** A channel an algorithm cannot be computed without, and how to capture it. */
export class MissingInputError extends Error {
  readonly missing: readonly string[];
  constructor(message: string, missing: readonly string[] = []) {
    super(message);
    this.missing = missing;
  }
}
