/** Geometry of the update strip: a line of thousands of points in a few hundred pixels, and what a click means. */

export interface Point {
  x: number;
  y: number;
}

/**
 * The points to draw: at most the lowest and the highest of each pixel column, so that no peak is lost. `points` are
 * in pixels and ordered by x.
 */
export function thin(points: readonly Point[]): Point[] {
  const out: Point[] = [];
  let column: Point[] = [];
  const flush = () => {
    if (column.length <= 2) out.push(...column);
    else {
      const low = column.reduce((a, b) => (b.y < a.y ? b : a));
      const high = column.reduce((a, b) => (b.y > a.y ? b : a));
      out.push(...(low === high ? [low] : column.indexOf(low) < column.indexOf(high) ? [low, high] : [high, low]));
    }
    column = [];
  };
  for (const point of points) {
    if (column.length && Math.floor(point.x) !== Math.floor(column[0]?.x ?? 0)) flush();
    column.push(point);
  }
  flush();
  return out;
}

/** The number of `sorted` (ascending) that is nearest to `value`; `null` of none. */
export function nearest(sorted: readonly number[], value: number): number | null {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] as number) < value) low = middle + 1;
    else high = middle;
  }
  const above = sorted[low];
  const below = sorted[low - 1];
  if (above === undefined) return below ?? null;
  if (below === undefined) return above;
  return value - below <= above - value ? below : above;
}
