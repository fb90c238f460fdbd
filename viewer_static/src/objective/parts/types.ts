/**
 * What parts are given and give. A part is a function of its name in its slot's table; its last argument holds its
 * hyper-parameters, as `registry/parts/{slot}.json` names them.
 *
 * Every array is float64 and has a value a token (BT) unless said otherwise: what is one a response stands on each of
 * its tokens.
 */
import { spread, type Prepared } from "../prepared";
import { cappedExp } from "../numbers";

export const [LOW, HIGH, DUAL, DELTA, REGION, CAPPED_LOW, CAPPED_HIGH] = [1, 2, 3, 4, 5, 6, 7] as const;

export interface Rewards {
  /** B. */
  readonly response: Float64Array;
  /** BT, where a part made them so; their sum over a response is what counts then. */
  readonly token: Float64Array | null;
}

/** Advantages on their way. */
export interface Advantages {
  readonly values: Float64Array;
  /** Whether a token has one of its own; else all of a response have the same. */
  readonly perToken: boolean;
}

/** What the ratio may be. */
export interface Bounds {
  readonly low: Float64Array;
  readonly high: Float64Array;
}

/** ∂/∂log ratio → ∂/∂log_probs: the transposed Jacobian. */
export type Pull = (d: Float64Array) => Float64Array;

/** How far the policy has moved from another, in log space, and how its gradient reaches the log-probs. */
export class Ratio {
  readonly log: Float64Array;
  /** B: the log ratio of whole responses, where it is one of these. */
  readonly response: Float64Array | null;
  readonly pull: Pull;
  /** Where the ratio itself clips before it averages (GMPO). */
  readonly clipped: Uint8Array | null;
  readonly #T: number;
  #value: Float64Array | null = null;

  private constructor(
    log: Float64Array,
    response: Float64Array | null,
    T: number,
    pull: Pull,
    clipped: Uint8Array | null,
  ) {
    this.log = log;
    this.response = response;
    this.pull = pull;
    this.clipped = clipped;
    this.#T = T;
  }

  /** Of tokens. */
  static ofTokens(batch: Prepared, log: Float64Array, pull: Pull, clipped: Uint8Array | null = null): Ratio {
    return new Ratio(log, batch.T === 1 ? log : null, batch.T, pull, clipped);
  }

  /** Of whole responses; `log` is B. */
  static ofResponses(batch: Prepared, log: Float64Array, pull: Pull, clipped: Uint8Array | null = null): Ratio {
    return new Ratio(spread(log, batch.T), log, batch.T, pull, clipped);
  }

  /** The ratio. */
  get value(): Float64Array {
    this.#value ??= this.response === null ? exps(this.log) : spread(exps(this.response), this.#T);
    return this.#value;
  }
}

function exps(log: Float64Array): Float64Array {
  const found = new Float64Array(log.length);
  for (let i = 0; i < found.length; i++) found[i] = cappedExp(log[i]!);
  return found;
}

/** A token's objective and its derivatives. */
export interface Gate {
  readonly objective: Float64Array;
  /** Derivative by the log ratio, which the ratio's Jacobian carries to the log-probs. */
  readonly dLogRatio: Float64Array | null;
  /** Derivative straight by the token's log-prob. */
  readonly dLogProb: Float64Array | null;
  /** Codes of `CLIPPED`, 0 where the gate did not bend. */
  readonly clipped: Uint8Array | null;
}

/** Factors on the policy term: 0 or 1, for some algorithms 2. */
export interface Mask {
  readonly keep: Float64Array;
  /** Whether a token that is masked also leaves the denominator, and the constraint. */
  readonly denominator: boolean;
}

/** A term of the loss beside the policy term: it is added to the loss, and taken from the objective. */
export interface Constraint {
  readonly penalty: Float64Array;
  readonly dLogProb?: Float64Array;
  readonly dLogRatio?: Float64Array;
  /** Whether the detached weights and masks of the policy term multiply it as well. */
  readonly beforeWeight?: boolean;
  /** False for a term over the whole vocabulary: it has no share in the gradient weight of the sampled token. */
  readonly attributable?: boolean;
  /** Averaged over tokens whatever the aggregation is. */
  readonly tokenMean?: boolean;
  /** 1 on the tokens it is for, where these are not all that count. */
  readonly among?: Float64Array | null;
  /** The ratio `dLogRatio` is the derivative by, where it is not the policy term's. */
  readonly ratio?: Ratio;
}

/** The functions of a slot, by the name of the part. Hyper-parameters come as their description says. */
export type Table<Arguments extends readonly unknown[], Result> = Readonly<
  Record<string, (...given: [...Arguments, values: never]) => Result>
>;

/** An empty array of a value a token. */
export function perToken(batch: Prepared): Float64Array {
  return new Float64Array(batch.B * batch.T);
}
