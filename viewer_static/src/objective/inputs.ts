/** What an objective is computed from: a batch of channels, and the normalisers of the update it is part of. */
import { INPUTS } from "./inputTable";
import { Prepared, missing, type Axes, type Column } from "./prepared";
import { cut, didYouMean } from "./words";
import { AlgorithmError, MissingInputError, type BatchInput, type InputArray, type Normalisers } from "./types";

export { INPUTS };

/** Inputs that are only ever compared with each other: texts or numbers of any size. Parts see them numbered from 0. */
const IDENTITIES: ReadonlySet<string> = new Set(["group", "anchors", "answers"]);

const UNSAID: Normalisers = {
  accumulationSteps: 1,
  tokens: null,
  microBatchTokens: null,
  microBatchRows: null,
  microBatchCountedRows: null,
  microBatchGroups: null,
  rows: null,
  length: null,
  dataParallelSize: 1,
};

interface Given {
  readonly axes: Axes;
  readonly values: InputArray;
}

/** How a user comes by an input, as the end of a sentence: "capture a rollout". */
export function howToCapture(name: string): string {
  return INPUTS[name]?.capture ?? "pass it";
}

/** Throws MissingInputError for the first name the batch lacks, with every one it lacks. */
export function require(batch: Batch, names: readonly string[], who: string): void {
  const lacking = names.filter((name) => !batch.has(name));
  if (lacking.length > 0) throw new MissingInputError(`${who} ${missing(lacking[0]!)}`, lacking);
}

/**
 * Responses with their channels, as given; made by `makeBatch`.
 *
 * Positions where the mask is 0 may hold anything. Parts see it `prepared`.
 */
export class Batch {
  readonly B: number;
  readonly T: number;
  readonly #given: ReadonlyMap<string, Given>;
  readonly #normalisers: Normalisers;
  readonly #before: Float64Array;

  constructor(
    B: number,
    T: number,
    given: ReadonlyMap<string, Given>,
    normalisers: Normalisers,
    before: Float64Array,
  ) {
    this.B = B;
    this.T = T;
    this.#given = given;
    this.#normalisers = normalisers;
    this.#before = before;
  }

  has(name: string): boolean {
    return this.#given.has(name);
  }

  /**
   * The batch with these inputs alone, in float64, 0 where a token does not count.
   *
   * A token that counts but whose value is not finite contributes nothing to any numerator, keeps its place in every
   * denominator and is marked as invalid; a response without a finite reward is left out of every statistic. Where
   * anything else of a response is not finite, both happen to it.
   */
  prepared(names: readonly string[]): Prepared {
    const { B, T } = this;
    const kept = [...new Set([...names, "log_probs", "mask"])].filter((name) => this.#given.has(name));
    const counts = this.#given.get("mask")!.values as ArrayLike<number>;
    const usable = new Uint8Array(B * T);
    for (let i = 0; i < usable.length; i++) usable[i] = counts[i]! > 0 ? 1 : 0;
    const mask = new Float64Array(usable);
    const broken = new Uint8Array(B);
    const clean = new Map<string, Column>();
    const perToken: string[] = [];
    for (const name of kept) {
      if (name === "mask") continue;
      const { axes, values } = this.#given.get(name)!;
      if (axes === "BT") {
        perToken.push(name);
        dropNotFinite(usable, values);
      } else if (axes === "B" && name !== "reward") {
        for (let b = 0; b < B; b++) if (!isThere(values[b])) broken[b] = 1;
      }
    }
    for (let b = 0; b < B; b++) if (broken[b]) usable.fill(0, b * T, (b + 1) * T);
    for (const name of kept) {
      if (name === "mask") continue;
      const { axes, values } = this.#given.get(name)!;
      const identity = IDENTITIES.has(name);
      const column = identity ? numbered(values, axes === "BT" ? usable : null) : float64(values);
      if (axes === "BT") {
        for (let i = 0; i < column.length; i++) if (!usable[i]) column[i] = 0;
      } else if (axes === "B" && name !== "reward" && !identity) {
        for (let b = 0; b < B; b++) if (!Number.isFinite(column[b])) column[b] = 0;
      } else if (name === "reward" || name === "reward_components") {
        const width = column.length / B;
        for (let b = 0; b < B; b++) if (broken[b]) column.fill(NaN, b * width, (b + 1) * width);
      }
      clean.set(name, { axes, values: column });
    }
    const invalid = new Uint8Array(B * T);
    for (let i = 0; i < invalid.length; i++) invalid[i] = mask[i]! > 0 && !usable[i] ? 1 : 0;
    const often = new Float64Array(B).fill(1);
    return new Prepared({ B, T, normalisers: this.#normalisers, mask, invalid, before: this.#before, often }, clean);
  }
}

/** Clears what is not finite. */
function dropNotFinite(usable: Uint8Array, values: InputArray): void {
  for (let i = 0; i < usable.length; i++) if (usable[i] === 1 && !isThere(values[i])) usable[i] = 0;
}

function isThere(value: unknown): boolean {
  return typeof value === "number" ? Number.isFinite(value) : true;
}

function float64(values: InputArray): Float64Array {
  if (values instanceof Float64Array || values instanceof Float32Array) return new Float64Array(values);
  const numbers = new Float64Array(values.length);
  for (let i = 0; i < numbers.length; i++) numbers[i] = Number(values[i]);
  return numbers;
}

/** Equal values as equal numbers from 0; 0 where `where` is. */
function numbered(values: InputArray, where: Uint8Array | null): Float64Array {
  const known = new Map<unknown, number>();
  const numbers = new Float64Array(values.length);
  for (let i = 0; i < numbers.length; i++) {
    if (where !== null && !where[i]) continue;
    const number = known.get(values[i]) ?? known.size;
    if (number === known.size) known.set(values[i], number);
    numbers[i] = number;
  }
  return numbers;
}

/** A batch of flat arrays. Throws AlgorithmError where a name is unknown or a length does not fit. */
export function makeBatch(input: BatchInput): Batch {
  const { B, T } = input;
  const given = new Map<string, Given>();
  const arrays = new Map(Object.entries(input.arrays).filter(([, values]) => values !== undefined && values !== null));
  for (const name of arrays.keys()) {
    if (INPUTS[name] !== undefined) continue;
    throw new AlgorithmError(`unknown input ${cut(name)}${didYouMean(name, Object.keys(INPUTS), "")}`);
  }
  for (const name of ["log_probs", "mask"]) {
    if (!arrays.has(name)) throw new MissingInputError(`a batch needs ${name}: ${INPUTS[name]!.meaning}`, [name]);
  }
  for (const [name, values] of arrays) {
    checkNumeric(name, values);
    given.set(name, { axes: axesOf(name, values.length, B, T), values });
  }
  if (given.has("rewards") && !given.has("reward")) {
    const mask = given.get("mask")!.values;
    const rewards = given.get("rewards")!.values;
    const reward = new Float64Array(B);
    for (let i = 0; i < B * T; i++) if (Number(mask[i]) > 0) reward[Math.floor(i / T)]! += Number(rewards[i]);
    given.set("reward", { axes: "B", values: reward });
  }
  const before = new Float64Array(B).fill(1);
  if (input.often !== undefined) before.set(input.often);
  return new Batch(B, T, given, { ...UNSAID, ...input.normalisers }, before);
}

function checkNumeric(name: string, values: InputArray): void {
  if (ArrayBuffer.isView(values)) return;
  for (let i = 0; i < values.length; i++) {
    const kind = typeof values[i];
    if (kind === "number" || kind === "bigint" || kind === "boolean") continue;
    if (!IDENTITIES.has(name) || kind !== "string") throw new AlgorithmError(`${name} is not numeric`);
  }
}

function axesOf(name: string, length: number, B: number, T: number): Axes {
  const { axes } = INPUTS[name]!;
  if (axes === "K") return "K";
  if (axes === "BK") {
    if (B === 0 ? length === 0 : length % B === 0) return "BK";
  } else {
    if (axes !== "BT" && length === B) return "B";
    if (axes !== "B" && length === B * T) return "BT";
  }
  const shapes: Record<string, string> = { BT: `(${B}, ${T})`, B: `(${B},)`, "B|BT": `(${B},) or (${B}, ${T})` };
  const wanted = shapes[axes] ?? `(${B}, reward functions)`;
  throw new AlgorithmError(`${name} has shape (${length},); ${wanted} is needed, flat, like log_probs (${B}, ${T})`);
}
