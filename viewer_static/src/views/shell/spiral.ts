/** A run as a mark: its reward wound three quarters round, from 12 o'clock. */
const SWEEP = Math.PI * 1.5;
const POINTS = 64;
/** The longest straight piece, in radians. */
const BEND = 0.15;

/**
 * An SVG path around (0, 0) for values over a run; `null` values are left out. The lowest lies at radius `inner`, the
 * highest at `outer`. "" where fewer than two values are known.
 */
export function spiral(values: readonly (number | undefined)[], inner: number, outer: number): string {
  const known = values.flatMap((y, x) => (y !== undefined && Number.isFinite(y) ? [{ x, y }] : []));
  if (known.length < 2) return "";
  // Means of stretches: a mark of this size has no room for more.
  const size = Math.max(1, known.length / POINTS);
  const points: { x: number; y: number }[] = [];
  for (let at = 0; at < known.length; at += size) {
    const stretch = known.slice(Math.floor(at), Math.max(Math.floor(at) + 1, Math.floor(at + size)));
    const mean = (of: "x" | "y") => stretch.reduce((sum, point) => sum + point[of], 0) / stretch.length;
    points.push({ x: mean("x"), y: mean("y") });
  }
  const [first, last] = [known[0]?.x ?? 0, known.at(-1)?.x ?? 1];
  let [low, high] = [Infinity, -Infinity];
  for (const { y } of points) [low, high] = [Math.min(low, y), Math.max(high, y)];
  const polar = points.map(({ x, y }) => ({
    angle: (SWEEP * (x - first)) / (last - first) - Math.PI / 2,
    radius: inner + (outer - inner) * (high > low ? (y - low) / (high - low) : 0.5),
  }));
  // Few points lie far apart: between them the line is bent like the rest.
  const bent = polar.flatMap((to, i) => {
    const from = polar[i - 1];
    if (!from) return [to];
    const pieces = Math.ceil((to.angle - from.angle) / BEND);
    const between = (share: number) => ({
      angle: from.angle + (to.angle - from.angle) * share,
      radius: from.radius + (to.radius - from.radius) * share,
    });
    return Array.from({ length: pieces }, (_, piece) => between((piece + 1) / pieces));
  });
  return bent
    .map(({ angle, radius }, i) => `${i ? "L" : "M"}${(radius * Math.cos(angle)).toFixed(1)} ${(radius * Math.sin(angle)).toFixed(1)}`)
    .join("");
}
