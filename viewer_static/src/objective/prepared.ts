/** A batch as parts see it, and sums over what is in it. */
import { INPUTS } from "./inputTable";
import { times } from "./numbers";
import { MissingInputError, type Normalisers } from "./types";

export type Axes = "BT" | "B" | "BK" | "K";

/** What a missing input means and how to come by it. */
export function missing(name: string): string {
  const known = INPUTS[name];
  return known === undefined
    ? `needs ${name}`
    : `needs ${name} (${known.meaning.replace(/\.$/, "")}): ${known.capture}`;
}

export interface Column {
  readonly axes: Axes;
  readonly values: Float64Array;
}

interface Own {
  readonly B: number;
  readonly T: number;
  readonly normalisers: Normalisers;
  /** BT: 1 where a token counts. */
  readonly mask: Float64Array;
  /** BT: 1 where a token counts but holds a NaN or an infinity. */
  readonly invalid: Uint8Array;
  /** B: how often a response takes part before the algorithm's own filters. */
  readonly before: Float64Array;
  /** B: how often a response counts: 1, unless a filter drops or repeats it. */
  readonly often: Float64Array;
}

/** A batch as parts see it: float64, 0 where a token does not count; immutable. B and T are at least 1. */
export class Prepared implements Own {
  readonly B: number;
  readonly T: number;
  readonly normalisers: Normalisers;
  readonly mask: Float64Array;
  readonly invalid: Uint8Array;
  readonly before: Float64Array;
  readonly often: Float64Array;
  readonly #columns: ReadonlyMap<string, Column>;
  #valid: Float64Array | null = null;
  #lengths: Float64Array | null = null;
  #scored: Uint8Array | null = null;
  #members: readonly (readonly number[])[] | null = null;

  constructor(own: Own, columns: ReadonlyMap<string, Column>) {
    this.B = own.B;
    this.T = own.T;
    this.normalisers = own.normalisers;
    this.mask = own.mask;
    this.invalid = own.invalid;
    this.before = own.before;
    this.often = own.often;
    this.#columns = columns;
  }

  #with(changes: Partial<Own>, columns = this.#columns): Prepared {
    const { B, T, normalisers, mask, invalid, before, often } = this;
    return new Prepared({ B, T, normalisers, mask, invalid, before, often, ...changes }, columns);
  }

  has(name: string): boolean {
    return this.#columns.has(name);
  }

  #column(name: string): Column {
    const column = name === "mask" ? { axes: "BT" as const, values: this.mask } : this.#columns.get(name);
    if (column === undefined) throw new MissingInputError(missing(name), [name]);
    return column;
  }

  /** The names of its arrays, in the order of `INPUTS`. */
  get names(): readonly string[] {
    return Object.keys(INPUTS).filter((name) => this.#columns.has(name));
  }

  /** The array; MissingInputError, saying how to have it, where there is none. */
  get(name: string): Float64Array {
    return this.#column(name).values;
  }

  /** Whether an array has a value a token. */
  isPerToken(name: string): boolean {
    return this.#column(name).axes === "BT";
  }

  /** A B or BT array as BT. */
  spread(name: string): Float64Array {
    const { axes, values } = this.#column(name);
    return axes === "BT" ? values : spread(values, this.T);
  }

  /** The same batch counting other tokens. */
  counting(mask: Float64Array): Prepared {
    return this.#with({ mask });
  }

  /** The same batch counting only responses of which `rows` says so. */
  countingRows(rows: ArrayLike<number>): Prepared {
    const mask = this.mask.slice();
    for (let b = 0; b < this.B; b++) if (!rows[b]) mask.fill(0, b * this.T, (b + 1) * this.T);
    return this.counting(mask);
  }

  /** The same batch in which a response stands for so many like it. */
  repeating(often: Float64Array): Prepared {
    return this.#with({ often: times(this.often, often) });
  }

  /** The same batch in which other responses have no reward. */
  scoring(rows: ArrayLike<number>): Prepared {
    const reward = this.#columns.get("reward")?.values ?? new Float64Array(this.B);
    const columns = new Map(this.#columns);
    columns.set("reward", { axes: "B", values: reward.map((value, b) => (rows[b] ? value : NaN)) });
    return this.#with({}, columns);
  }

  /** BT: 1 where a token counts and every value of it is finite. */
  get valid(): Float64Array {
    if (this.#valid !== null) return this.#valid;
    const valid = this.mask.slice();
    for (let i = 0; i < valid.length; i++) if (this.invalid[i]) valid[i] = 0;
    this.#valid = valid;
    return valid;
  }

  /** B: tokens of each response that count, at least 1. */
  get lengths(): Float64Array {
    this.#lengths ??= rowSums(this.mask, this.T).map((length) => Math.max(length, 1));
    return this.#lengths;
  }

  /** B: whether a response has a finite reward, of any function; 1 everywhere in a batch without rewards. */
  get scored(): Uint8Array {
    if (this.#scored !== null) return this.#scored;
    const reward = this.#columns.get("reward")?.values;
    const components = this.#columns.get("reward_components")?.values;
    const K = components === undefined ? 0 : components.length / this.B;
    const scored = new Uint8Array(this.B);
    for (let b = 0; b < this.B; b++) {
      const any = components === undefined || components.subarray(b * K, (b + 1) * K).some(Number.isFinite);
      scored[b] = any && (reward === undefined || Number.isFinite(reward[b])) ? 1 : 0;
    }
    this.#scored = scored;
    return scored;
  }

  /** The responses of each prompt group. */
  get members(): readonly (readonly number[])[] {
    if (this.#members !== null) return this.#members;
    const members: number[][] = [];
    this.get("group").forEach((group, b) => (members[group] ??= []).push(b));
    this.#members = members;
    return members;
  }

  /** B: which group a response is of, from 0. */
  get groups(): Float64Array {
    return this.get("group");
  }

  /** B: mean over the tokens of a response that count; 0 for a response without any. */
  meanOverTokens(values: Float64Array): Float64Array {
    return maskedSums(values, this.mask, this.T).map((total, b) => total / this.lengths[b]!);
  }
}

/** One value a response, on each of its tokens. */
export function spread(values: Float64Array, T: number): Float64Array {
  const every = new Float64Array(values.length * T);
  for (let b = 0; b < values.length; b++) every.fill(values[b]!, b * T, (b + 1) * T);
  return every;
}

/** B: sums over the tokens of a response. */
export function rowSums(values: Float64Array, T: number): Float64Array {
  const sums = new Float64Array(values.length / T);
  for (let b = 0, i = 0; b < sums.length; b++) {
    let total = 0;
    for (const end = i + T; i < end; i++) total += values[i]!;
    sums[b] = total;
  }
  return sums;
}

/** B: sums of values × mask over the tokens of a response. */
export function maskedSums(values: Float64Array, mask: Float64Array, T: number): Float64Array {
  const sums = new Float64Array(values.length / T);
  for (let b = 0, i = 0; b < sums.length; b++) {
    let total = 0;
    for (const end = i + T; i < end; i++) total += values[i]! * mask[i]!;
    sums[b] = total;
  }
  return sums;
}
