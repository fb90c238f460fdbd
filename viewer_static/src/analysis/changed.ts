/** Tokens of which another algorithm changes what the update does. */
import type { Analysis, Changed } from "./types";

/** A push below this share of the largest one is none: what is left of it is rounding. */
const NEGLIGIBLE = 1e-6;

/**
 * Tokens whose push has another sign under `other` than under `own`, vanishes or appears; the largest change first.
 * Where a response was trained on twice in the update, each pass has its own.
 */
export function changed(own: Analysis, other: Analysis): Changed[] {
  const floor = NEGLIGIBLE * Math.max(largest(own), largest(other));
  const sign = (push: number) => (Math.abs(push) > floor ? Math.sign(push) : 0);
  const found: Changed[] = [];
  for (const [pass, { push }] of own.passes) {
    const others = other.passes.get(pass)?.push;
    if (!others) continue;
    for (let token = 0; token < push.length; token++) {
      const before = push[token]!;
      const after = others[token]!;
      const was = sign(before);
      const is = sign(after);
      if (was === is) continue;
      found.push({ pass, token, what: !is ? "vanishes" : !was ? "appears" : "sign", before, after });
    }
  }
  return found.sort((a, b) => Math.abs(b.after - b.before) - Math.abs(a.after - a.before));
}

/** How many counted pushes another algorithm makes larger or smaller, and by which factors at least and at most. */
export interface Resized {
  readonly tokens: number;
  /** Pushes that were there before: of how many. */
  readonly of: number;
  /** |after| / |before| of those that are there before and after; NaN where there is none. */
  readonly least: number;
  readonly most: number;
}

/** A push that differs by less than this share is the same one. */
const SAME = 1e-6;

export function resized(own: Analysis, other: Analysis): Resized {
  const floor = NEGLIGIBLE * Math.max(largest(own), largest(other));
  let [tokens, of, least, most] = [0, 0, Infinity, 0];
  for (const [pass, { push }] of own.passes) {
    const others = other.passes.get(pass)?.push;
    if (!others) continue;
    for (let token = 0; token < push.length; token++) {
      const before = Math.abs(push[token]!);
      const after = Math.abs(others[token]!);
      if (!(before > floor)) continue;
      of++;
      if (!(after > floor) || push[token]! * others[token]! < 0 || Math.abs(after - before) <= SAME * before) continue;
      tokens++;
      least = Math.min(least, after / before);
      most = Math.max(most, after / before);
    }
  }
  return { tokens, of, least: tokens ? least : NaN, most: tokens ? most : NaN };
}

/** The strongest push of an algorithm on the update. */
export function largest(analysis: Analysis): number {
  let most = 0;
  for (const { push } of analysis.passes.values()) {
    for (const value of push) if (Math.abs(value) > most) most = Math.abs(value);
  }
  return most;
}
