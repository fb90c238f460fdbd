/** Statistics of prompt groups: sums, centred values and deviations, over responses with a finite reward. All are B. */
import type { Prepared } from "../prepared";
import { grown } from "../numbers";

/** Sum of a value over the response's group; what has no reward must be 0 already. */
export function groupSum(batch: Prepared, values: ArrayLike<number>): Float64Array {
  const { groups, members } = batch;
  const sums = new Float64Array(members.length);
  for (let b = 0; b < groups.length; b++) sums[groups[b]!]! += values[b]!;
  return groups.map((group) => sums[group]!);
}

/** Responses with a finite reward in the response's group. */
export function groupCount(batch: Prepared): Float64Array {
  return groupSum(batch, batch.scored);
}

/** Values, 0 where the response has no finite reward. */
export function finite(batch: Prepared, values: Float64Array): Float64Array {
  const { scored } = batch;
  return values.map((value, b) => (scored[b] ? value : 0));
}

/** Highest and lowest value of the response's group, among responses of which `rows` says so; −∞ and ∞ of none. */
export function groupRange(
  batch: Prepared,
  values: Float64Array,
  rows: ArrayLike<number>,
): { highest: Float64Array; lowest: Float64Array } {
  const { groups, members } = batch;
  const highest = new Float64Array(members.length).fill(-Infinity);
  const lowest = new Float64Array(members.length).fill(Infinity);
  for (let b = 0; b < groups.length; b++) {
    if (!rows[b]) continue;
    const group = groups[b]!;
    highest[group] = Math.max(highest[group]!, values[b]!);
    lowest[group] = Math.min(lowest[group]!, values[b]!);
  }
  return { highest: groups.map((group) => highest[group]!), lowest: groups.map((group) => lowest[group]!) };
}

/** Whether every finite reward of the response's group is the same. */
export function allEqual(batch: Prepared, values: Float64Array): Uint8Array {
  const { highest, lowest } = groupRange(batch, values, batch.scored);
  return Uint8Array.from(highest, (high, b) => (high <= lowest[b]! ? 1 : 0));
}

/** Value − mean of its group. */
export function centred(batch: Prepared, given: Float64Array, singleton: string): Float64Array {
  const values = finite(batch, given);
  const count = groupCount(batch);
  const total = groupSum(batch, values);
  const equal = allEqual(batch, values);
  const difference = values.map((value, b) => {
    if (singleton === "zero" && count[b] === 1) return value;
    return equal[b] ? 0 : value - total[b]! / Math.max(count[b]!, 1);
  });
  return finite(batch, difference);
}

/** Standard deviation of a value inside its group; a group too small for it has 0, or 1 as in verl. */
export function groupStdOf(batch: Prepared, values: Float64Array, ddof: number, singleton: string): Float64Array {
  const count = groupCount(batch);
  const difference = centred(batch, values, "self");
  const squares = groupSum(batch, difference.map((value) => grown(value * value)));
  return squares.map((total, b) =>
    count[b]! <= 1 && singleton === "zero" ? 1 : Math.sqrt(total / Math.max(count[b]! - ddof, 1)),
  );
}
