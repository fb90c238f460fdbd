/** Words of error messages: what was meant, and values as they are written. */

/** Length of what two texts have in common, longest blocks first (Ratcliff and Obershelp). */
function common(a: string, b: string): number {
  let best = 0;
  let [atA, atB] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) {
      let size = 0;
      while (i + size < a.length && j + size < b.length && a[i + size] === b[j + size]) size++;
      if (size > best) [best, atA, atB] = [size, i, j];
    }
  }
  if (best === 0) return 0;
  return common(a.slice(0, atA), b.slice(0, atB)) + best + common(a.slice(atA + best), b.slice(atB + best));
}

/** The known name most like one that is not; null where none is like it. */
export function nearest(name: string, known: readonly string[]): string | null {
  // Nobody means a known name by a text this long, and comparing takes its time.
  if (name.length > 64) return null;
  let found: string | null = null;
  let best = 0.6;
  for (const each of known) {
    const likeness = (2 * common(name, each)) / (name.length + each.length);
    if (likeness > best || (found === null && likeness === best)) [found, best] = [each, likeness];
  }
  return found;
}

/** `; did you mean X?`, or what to say where nothing is like it. */
export function didYouMean(name: string, known: readonly string[], otherwise?: string): string {
  const near = nearest(name, known);
  return near === null ? (otherwise ?? ` (there are ${known.join(", ")})`) : `; did you mean ${near}?`;
}

/** A value as a message shows it, on one line and no longer than a line. */
export function shown(value: unknown): string {
  if (typeof value === "string") return cut(`'${value.replace(/\s/g, " ")}'`);
  if (typeof value === "object" && value !== null) return Array.isArray(value) ? "a list" : "an object";
  return String(value);
}

/** A name from outside as a message shows it. */
export function cut(text: string): string {
  const line = text.replace(/\s/g, " ");
  return line.length > 80 ? `${line.slice(0, 79)}…` : line;
}

/** A number as Python writes one: `1e-06`, `0.2`, `3`. */
export function numberText(value: number): string {
  const size = Math.abs(value);
  if (Number.isFinite(value) && size !== 0 && (size < 1e-4 || size >= 1e16)) {
    return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
  }
  return String(value);
}
