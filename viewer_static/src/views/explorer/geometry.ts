/**
 * Geometry of the dial: a fisheye along the run, rings, arcs and where labels go. Shares run from 0 (the first update)
 * to 1 (the last); a *place* is where a share is drawn, from 0 (12 o'clock) to 1 (9 o'clock, 270° on).
 */

export interface Lens {
  /** The share that is magnified most. */
  focus: number;
  /** Where it is drawn. */
  place: number;
  /** How much: 0 is no lens; around the focus things are `power + 1` times as large. */
  power: number;
}

/** Share of the dial in which the pointer moves without the lens following: aiming is as fine there as the lens is strong. */
const SLACK = 0.03;
/** How quickly a lens that follows returns to drawing things at their own share. */
const RETURN = 20;

/** How strong a lens a run needs: none where every update has room. */
export function lensPower(updates: number): number {
  return Math.max(0, Math.min(5, (updates - 12) / 24));
}

/** A lens that magnifies a share where it is. */
export function rest(share: number, power: number): Lens {
  return { focus: share, place: share, power };
}

/** Where a share is drawn: strictly monotone in `share`, 0 → 0 and 1 → 1 (but for a focus at an end that is drawn elsewhere). */
export function toPlace(lens: Lens, share: number): number {
  const { focus, place, power } = lens;
  if (share === focus) return place;
  if (share > focus) return place + (1 - place) * bend((share - focus) / (1 - focus), power);
  return place - place * bend((focus - share) / focus, power);
}

/** The share that is drawn at a place: the inverse of `toPlace`. */
export function toShare(lens: Lens, at: number): number {
  const { focus, place, power } = lens;
  if (at === place) return focus;
  if (at > place) return focus + (1 - focus) * unbend((at - place) / (1 - place), power);
  return focus - focus * unbend((place - at) / place, power);
}

function bend(q: number, power: number): number {
  return ((power + 1) * q) / (power * q + 1);
}

function unbend(q: number, power: number): number {
  return q / (power + 1 - power * q);
}

/**
 * The lens as the pointer arrives at a place, from outside or after a pause: it comes to the pointer, and what is under
 * the pointer stays there, so that what was aimed at is hit.
 */
export function arrive(lens: Lens, at: number): Lens {
  const { power } = lens;
  const focus = toShare(lens, at);
  // Where coming along would squeeze a side more than a lens at rest does, it stays: then nothing moves at all.
  const squeezed = focus > (power + 1) * at + 1e-9 || 1 - focus > (power + 1) * (1 - at) + 1e-9;
  return squeezed ? lens : { focus, place: at, power };
}

/** The lens as the pointer moves on to a place. Near its middle it stays, so that a small movement aims finely; further on it comes along. */
export function follow(lens: Lens, at: number): Lens {
  const ahead = at - lens.place;
  if (Math.abs(ahead) <= SLACK) return lens;
  const place = Math.max(0, Math.min(1, at - Math.sign(ahead) * SLACK));
  const moved = Math.abs(place - lens.place);
  const focus = toShare(lens, place);
  return { focus: focus + (place - focus) * Math.min(1, RETURN * moved), place, power: lens.power };
}

/** Updates from `first` to `last` as shares. */
export function shareOf(update: number, first: number, last: number): number {
  return last > first ? Math.max(0, Math.min(1, (update - first) / (last - first))) : 0;
}

export function updateAt(share: number, first: number, last: number): number {
  return first + Math.round(share * (last - first));
}

/** Three quarters of a circle, from 12 o'clock clockwise. Radians, 0 to the right, y downwards. */
const START = -Math.PI / 2;
const SWEEP = Math.PI * 1.5;

function angleOf(place: number): number {
  return START + SWEEP * place;
}

export interface Pointed {
  /** Distance from the middle. */
  radius: number;
  /** Where along the dial, 0 to 1; `null` in the free quadrant. */
  place: number | null;
}

/** What a point relative to the middle points at. Just beyond an end of the dial counts as that end. */
export function pointed(x: number, y: number): Pointed {
  const radius = Math.hypot(x, y);
  let angle = Math.atan2(y, x) - START;
  if (angle < 0) angle += 2 * Math.PI;
  if (angle <= SWEEP) return { radius, place: angle / SWEEP };
  // 8 pixels around either end, so that marks there can be hit on both their sides.
  if ((2 * Math.PI - angle) * radius <= 8) return { radius, place: 0 };
  if ((angle - SWEEP) * radius <= 8) return { radius, place: 1 };
  return { radius, place: null };
}

export function point(radius: number, place: number): [number, number] {
  const angle = angleOf(place);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

export interface Ring {
  inner: number;
  outer: number;
}

/** Rings from `outer` inwards to `inner`; the one at index `wide` is 2.6 times as wide as the others. */
export function rings(count: number, inner: number, outer: number, wide: number): Ring[] {
  const total = count + (wide >= 0 ? 1.6 : 0);
  const unit = (outer - inner) / total;
  let at = outer;
  return Array.from({ length: count }, (_, i) => {
    const from = at;
    at -= unit * (i === wide ? 2.6 : 1);
    return { outer: from, inner: at };
  });
}

/** An arc between two places, as an SVG path from the first. */
export function arc(radius: number, from: number, to: number): string {
  const [x0, y0] = point(radius, from);
  const [x1, y1] = point(radius, to);
  return `M${pair(x0, y0)}A${radius.toFixed(1)} ${radius.toFixed(1)} 0 ${(to - from) * SWEEP > Math.PI ? 1 : 0} 1 ${pair(x1, y1)}`;
}

/** The ground of a ring. */
export function band({ inner, outer }: Ring): string {
  const [x1, y1] = point(inner, 1);
  const [x0, y0] = point(inner, 0);
  const r = inner.toFixed(1);
  return `${arc(outer, 0, 1)}L${pair(x1, y1)}A${r} ${r} 0 1 0 ${pair(x0, y0)}Z`;
}

/** Corners further apart than this, as a share of the dial, get points between them: a chord would cut into the next ring. */
const CHORD = 0.013;

/** A line through points given by radius and place, bent around the middle. */
export function bent(radii: readonly number[], places: readonly number[]): string {
  let path = "";
  for (let i = 0; i < radii.length; i++) {
    const r = radii[i] as number;
    const p = places[i] as number;
    if (!i) {
      path = `M${pair(...point(r, p))}`;
      continue;
    }
    const r0 = radii[i - 1] as number;
    const p0 = places[i - 1] as number;
    const pieces = Math.max(1, Math.ceil((p - p0) / CHORD));
    for (let j = 1; j <= pieces; j++) {
      const share = j / pieces;
      path += `L${pair(...point(r0 + (r - r0) * share, p0 + (p - p0) * share))}`;
    }
  }
  return path;
}

/** The ground under a bent line, down to `inner`. */
export function under(line: string, inner: number, from: number, to: number): string {
  const [x1, y1] = point(inner, to);
  const [x0, y0] = point(inner, from);
  const r = inner.toFixed(1);
  return `${line}L${pair(x1, y1)}A${r} ${r} 0 ${(to - from) * SWEEP > Math.PI ? 1 : 0} 0 ${pair(x0, y0)}Z`;
}

/** A corner of a path, to a tenth of a pixel. */
export function pair(x: number, y: number): string {
  // Several times as fast as toFixed, and there are thousands at every movement of the pointer.
  return `${Math.round(x * 10) / 10} ${Math.round(y * 10) / 10}`;
}

/** A diamond around a point. */
export function diamond(x: number, y: number, size: number): string {
  const s = size.toFixed(1);
  return `M${x.toFixed(1)} ${(y - size).toFixed(1)}l${s} ${s}l-${s} ${s}l-${s} -${s}z`;
}

/** Round numbers from `first` to `last`, at most about `most` of them; the first is always one. */
export function ticks(first: number, last: number, most: number): number[] {
  if (last <= first) return [first];
  const rough = (last - first) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough) ?? rough);
  const found = [first];
  for (let at = Math.floor(first / step + 1) * step; at <= last; at += step) found.push(at);
  return found;
}

/** Positions (ascending) moved as little as possible so that neighbours are `gap` apart, not below `from`. */
export function spread(wanted: readonly number[], gap: number, from: number): number[] {
  const out: number[] = [];
  for (const at of wanted) out.push(Math.max(at, (out.at(-1) ?? from - gap) + gap));
  // What was pushed down is centred on what it belongs to, as far as there is room above.
  const excess = out.length ? Math.max(0, (out.at(-1) as number) - (wanted.at(-1) as number)) / 2 : 0;
  const room = out.length ? Math.min(excess, (out[0] as number) - from) : 0;
  return excess ? out.map((at) => at - room) : out;
}

/** Those of ascending positions that are at least `gap` from the one kept before. By index. */
export function sparse(positions: ArrayLike<number>, gap: number): number[] {
  const out: number[] = [];
  let last = -Infinity;
  for (let i = 0; i < positions.length; i++) {
    if ((positions[i] as number) - last < gap) continue;
    last = positions[i] as number;
    out.push(i);
  }
  return out;
}

/** Where each of the updates is drawn. */
export function placesOf(lens: Lens, numbers: ArrayLike<number>, first: number, last: number): Float64Array {
  const places = new Float64Array(numbers.length);
  for (let i = 0; i < places.length; i++) places[i] = toPlace(lens, shareOf(numbers[i] as number, first, last));
  return places;
}

/** Index of the number of `sorted` (ascending) that is nearest to `value`; −1 of none. */
export function nearest(sorted: ArrayLike<number>, value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] as number) < value) low = middle + 1;
    else high = middle;
  }
  if (low === sorted.length) return low - 1;
  if (low === 0) return 0;
  return value - (sorted[low - 1] as number) <= (sorted[low] as number) - value ? low - 1 : low;
}
