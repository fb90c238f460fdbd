/** What is marked at a token beside its colour: clipped, outside the brush, found, changed by a what-if. */
import type { Changed, PassResult } from "../../analysis/types";
import { silences } from "../../objective/types";

export const MARK = { clipped: 1, capped: 2, out: 4, found: 8, changed: 16 } as const;

/** `data-m` of a token, by its marks: letters apart by a space, as CSS selects them. */
export const LETTERS: readonly string[] = Array.from({ length: 32 }, (_, bits) =>
  Object.values(MARK)
    .flatMap((bit, i) => (bits & bit ? ["ckofw"[i]] : []))
    .join(" "),
);

/** Marks of a pass, a byte a token. `inside`: which tokens the brush picks; `found`: ranges of text, ends excluded. */
export function marksOf(
  n: number,
  result: PassResult | null,
  inside: ((i: number) => boolean) | null,
  found: readonly (readonly [number, number])[],
  changed: readonly Changed[],
): Uint8Array {
  const marks = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    const code = result?.clipped[i] ?? 0;
    if (code) marks[i] = silences(code) ? MARK.clipped : MARK.capped;
    if (inside && !inside(i)) marks[i] = (marks[i] as number) | MARK.out;
  }
  for (const [from, to] of found) for (let i = from; i < to; i++) marks[i] = (marks[i] as number) | MARK.found;
  for (const { token } of changed) marks[token] = (marks[token] as number) | MARK.changed;
  return marks;
}
