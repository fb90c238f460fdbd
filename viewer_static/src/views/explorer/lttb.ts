/**
 * Largest-Triangle-Three-Buckets (Steinarsson 2013), in what is seen: buckets are equally wide on the screen, so that
 * a zoom or a fisheye gets the points it has room for. Beyond the method, the highest and the lowest value always stay,
 * and a missing value breaks the line.
 */

/** Part of a line without gaps, by index into its points: the indices that are drawn, ascending. */
export type Stretch = number[];

/**
 * Which of the points `[from, to)` to draw so that a line keeps its look with about `buckets` of them. `x` (ascending,
 * in pixels) and `y` (NaN where missing) are read at those indices. Keeps the first, the last, the lowest and the
 * highest of all.
 */
export function lttb(x: ArrayLike<number>, y: ArrayLike<number>, from: number, to: number, buckets: number): Stretch[] {
  const [low, high] = extremes(y, from, to);
  if (low < 0) return [];
  const width = ((x[to - 1] as number) - (x[from] as number)) / Math.max(1, buckets);
  const stretches: Stretch[] = [];
  for (let start = from; start < to; ) {
    if (!Number.isFinite(y[start])) {
      start++;
      continue;
    }
    let end = start + 1;
    while (end < to && Number.isFinite(y[end])) end++;
    stretches.push(withPeaks(thinned(x, y, start, end, width), [low, high], start, end));
    start = end;
  }
  return stretches;
}

/** Indices of the first lowest and the first highest value; −1 where there is none. */
function extremes(y: ArrayLike<number>, from: number, to: number): [number, number] {
  let low = -1;
  let high = -1;
  for (let i = from; i < to; i++) {
    const value = y[i] as number;
    if (!Number.isFinite(value)) continue;
    if (low < 0 || value < (y[low] as number)) low = i;
    if (high < 0 || value > (y[high] as number)) high = i;
  }
  return [low, high];
}

function thinned(x: ArrayLike<number>, y: ArrayLike<number>, start: number, end: number, width: number): Stretch {
  const out = [start];
  if (end - start <= 2 || !(width > 0)) {
    for (let i = start + 1; i < end; i++) out.push(i);
    return out;
  }
  const origin = x[start] as number;
  const bucketEnd = (at: number) => {
    const edge = origin + (Math.floor(((x[at] as number) - origin) / width) + 1) * width;
    let next = at + 1;
    while (next < end - 1 && (x[next] as number) < edge) next++;
    return next;
  };
  let begin = start + 1;
  let stop = begin < end - 1 ? bucketEnd(begin) : begin;
  while (begin < end - 1) {
    const after = stop < end - 1 ? bucketEnd(stop) : end;
    out.push(largest(x, y, out.at(-1) as number, begin, stop, after));
    begin = stop;
    stop = after;
  }
  out.push(end - 1);
  return out;
}

/** The point of `[begin, stop)` that makes the largest triangle with point `a` and the mean of `[stop, after)`. */
function largest(
  x: ArrayLike<number>, y: ArrayLike<number>, a: number, begin: number, stop: number, after: number,
): number {
  if (stop - begin === 1) return begin;
  let meanX = 0;
  let meanY = 0;
  for (let i = stop; i < after; i++) {
    meanX += x[i] as number;
    meanY += y[i] as number;
  }
  meanX /= after - stop;
  meanY /= after - stop;
  const ax = x[a] as number;
  const ay = y[a] as number;
  let best = begin;
  let most = -1;
  for (let i = begin; i < stop; i++) {
    const area = Math.abs((ax - meanX) * ((y[i] as number) - ay) - (ax - (x[i] as number)) * (meanY - ay));
    if (area > most) {
      most = area;
      best = i;
    }
  }
  return best;
}

function withPeaks(stretch: Stretch, peaks: readonly number[], start: number, end: number): Stretch {
  const missing = peaks.filter((i, at) => i >= start && i < end && !stretch.includes(i) && peaks.indexOf(i) === at);
  return missing.length ? [...stretch, ...missing].sort((a, b) => a - b) : stretch;
}
