/** The token of a group that an update pushes hardest: most can be said of it. */
import type { Pass } from "../bundle/step";
import type { Analysis } from "./types";

export interface Hardest {
  pass: Pass;
  /** Index in the pass. */
  token: number;
  /** Tokens that are pushed as hard: 1 where it stands alone, 0 where none is pushed, NaN where no push is known. */
  alike: number;
}

/** Pushes closer than this, relative to the larger one, are equally hard: their difference is rounding. */
const ALIKE = 1e-9;

/** The first of those pushed hardest, of the tokens that count; the first that counts where none is pushed. */
export function hardest(passes: readonly Pass[], analysis: Analysis | null): Hardest | null {
  let most = 0;
  let found: Hardest | null = null;
  for (const pass of passes) {
    const { tokens } = pass;
    const result = analysis?.passes.get(pass.key);
    const push = result?.pass === pass ? result.push : undefined;
    for (let token = 0; token < (tokens?.n ?? 0); token++) {
      if (!(Number(tokens?.mask[token]) > 0)) continue;
      const size = Math.abs(push?.[token] ?? 0);
      if (size > most * (1 + ALIKE)) [most, found] = [size, { pass, token, alike: 1 }];
      else if (most > 0 && found && size >= most * (1 - ALIKE)) found.alike++;
      else found ??= { pass, token, alike: push ? 0 : NaN };
    }
  }
  return found;
}
