/** Arithmetic on arrays, as NumPy does it: NaN passes through, and an overflow is remembered where somebody asks. */

/** Log-ratios beyond ±300 nats saturate: e^300 is 10^130, which no loss survives, and its square is finite. */
export const LOG_LIMIT = 300;

/** e^log, saturated at ±300 nats. */
export function cappedExp(log: number): number {
  return Math.exp(log > LOG_LIMIT ? LOG_LIMIT : log < -LOG_LIMIT ? -LOG_LIMIT : log);
}

/** The value between two bounds; NaN stays NaN, and of bounds that cross the upper one holds. */
export function clip(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

/** a × b, value by value. */
export function times(a: Float64Array, b: ArrayLike<number>): Float64Array {
  const found = new Float64Array(a.length);
  for (let i = 0; i < found.length; i++) found[i] = a[i]! * b[i]!;
  return found;
}

/** a − b, value by value. */
export function minus(a: Float64Array, b: Float64Array): Float64Array {
  const found = new Float64Array(a.length);
  for (let i = 0; i < found.length; i++) found[i] = a[i]! - b[i]!;
  return found;
}

/** Each value times a number. */
export function scaled(values: Float64Array, factor: number): Float64Array {
  const found = new Float64Array(values.length);
  for (let i = 0; i < found.length; i++) found[i] = values[i]! * factor;
  return found;
}

/** Each value divided by a number. */
export function over(values: Float64Array, divisor: number): Float64Array {
  const found = new Float64Array(values.length);
  for (let i = 0; i < found.length; i++) found[i] = values[i]! / divisor;
  return found;
}

/** Each value, of which there are T a response, times the number of its response. */
export function timesRows(values: Float64Array, rows: ArrayLike<number>, T: number): Float64Array {
  const found = new Float64Array(values.length);
  for (let b = 0, i = 0; i < found.length; b++) {
    const factor = rows[b]!;
    for (const end = i + T; i < end; i++) found[i] = values[i]! * factor;
  }
  return found;
}

/** Whether every value is finite. */
export function areFinite(values: Float64Array): boolean {
  for (let i = 0; i < values.length; i++) if (values[i]! - values[i]! !== 0) return false;
  return true;
}

export function sum(values: ArrayLike<number>): number {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i]!;
  return total;
}

/** The largest value; −Infinity of none. */
export function largest(values: ArrayLike<number>): number {
  let found = -Infinity;
  for (let i = 0; i < values.length; i++) if (values[i]! > found) found = values[i]!;
  return found;
}

export function mean(values: ArrayLike<number>): number {
  return grown(sum(values)) / values.length;
}

/** The variance with `ddof` degrees of freedom taken away. */
export function variance(values: ArrayLike<number>, ddof: number): number {
  const centre = mean(values);
  let total = 0;
  for (let i = 0; i < values.length; i++) total += (values[i]! - centre) ** 2;
  return grown(total) / (values.length - ddof);
}

/** Whether there are two values that are not the same. */
export function differ(values: ArrayLike<number>): boolean {
  for (let i = 1; i < values.length; i++) if (values[i] !== values[0]) return true;
  return false;
}

/** The numbers of values in ascending order; equal ones keep theirs, NaN comes last. */
export function order(values: ArrayLike<number>): Int32Array {
  const places = new Int32Array(values.length);
  for (let i = 0; i < places.length; i++) places[i] = i;
  return places.sort((a, b) => {
    const left = values[a]!;
    const right = values[b]!;
    if (left < right) return -1;
    if (left > right) return 1;
    if (left === right) return a - b;
    return Number(Number.isNaN(left)) - Number(Number.isNaN(right)) || a - b;
  });
}

/** A quantile between the nearest two ranks, with the rounding of `numpy.quantile`: a value is compared with it. */
export function quantile(values: Float64Array, q: number): number {
  const sorted = values.slice().sort();
  const place = (sorted.length - 1) * q;
  const below = Math.floor(place);
  const share = place - below;
  const low = sorted[below]!;
  const high = sorted[Math.min(below + 1, sorted.length - 1)]!;
  return share >= 0.5 ? high - (high - low) * (1 - share) : low + (high - low) * share;
}

/** The nearest whole number, ties to even. */
export function toEven(value: number): number {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/** log Γ(x) for x above 0: Stirling's series, from 15 up. */
export function logGamma(x: number): number {
  let shifted = 1;
  let at = x;
  while (at < 15) {
    shifted *= at;
    at += 1;
  }
  const square = 1 / (at * at);
  const series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / at;
  return (at - 0.5) * Math.log(at) - at + 0.5 * Math.log(2 * Math.PI) + series - Math.log(shifted);
}

let overflowed = false;

/** The value itself; that it is infinite is remembered as an overflow. For what was computed from finite numbers. */
export function grown(value: number): number {
  if (value === Infinity || value === -Infinity) overflowed = true;
  return value;
}

/** What `work` gives, and whether it overflowed: what is divided by an infinity leaves a 0 that tells nothing. */
export function watched<Result>(work: () => Result): { result: Result; overflowed: boolean } {
  overflowed = false;
  const result = work();
  return { result, overflowed };
}
