/** Channels that number something of a response: segments, turns. */
import type { Prepared } from "../prepared";
import { AlgorithmError } from "../types";

/** Numbers above this cannot be meant; a table with a row each would not fit into memory. */
const MOST = 1 << 20;

/** The numbers of a channel, from 0, and one more than the highest. */
export function numbersOf(batch: Prepared, name: string): { numbers: Int32Array; count: number } {
  const values = batch.get(name);
  const numbers = new Int32Array(values.length);
  let highest = 0;
  for (let i = 0; i < values.length; i++) {
    const number = Math.trunc(values[i]!);
    if (number < 0 || number > MOST) throw new AlgorithmError(`${name}: numbers from 0 up are needed, not ${number}`);
    numbers[i] = number;
    if (number > highest) highest = number;
  }
  return { numbers, count: highest + 1 };
}

/** A row a response, a column a number of `numbersOf`: the sum of a token's values, and whether any token counts. */
export function perNumber(
  batch: Prepared,
  values: Float64Array,
  { numbers, count }: { numbers: Int32Array; count: number },
): { sums: Float64Array; size: Float64Array } {
  const sums = new Float64Array(batch.B * count);
  const size = new Float64Array(batch.B * count);
  for (let i = 0; i < values.length; i++) {
    const place = Math.floor(i / batch.T) * count + numbers[i]!;
    sums[place]! += values[i]! * batch.mask[i]!;
    size[place]! += batch.mask[i]!;
  }
  return { sums, size };
}

/** What stands at a token's number, on each token that counts. */
export function atTokens(
  batch: Prepared,
  table: Float64Array,
  { numbers, count }: { numbers: Int32Array; count: number },
): Float64Array {
  return batch.mask.map((mask, i) => table[Math.floor(i / batch.T) * count + numbers[i]!]! * mask);
}
