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

function largest(analysis: Analysis): number {
  let most = 0;
  for (const { push } of analysis.passes.values()) {
    for (const value of push) if (Math.abs(value) > most) most = Math.abs(value);
  }
  return most;
}
