/** Tokens that responses of opposite advantage share, place by place. */
import { maskedSums, type Prepared } from "../prepared";
import { perToken } from "./types";

/**
 * 2 where a response of positive advantage shares the token with one of negative advantage of its group, 0 the other
 * way round, else 1. Places are counted from the start and from the end.
 */
export function conflicts(batch: Prepared, advantages: Float64Array): Float64Array {
  const { B, T, mask } = batch;
  const ids = batch.get("ids").map(Math.trunc);
  const factor = perToken(batch).fill(1);
  const sign = maskedSums(advantages, mask, T).map(Math.sign);
  /** One past the last token that counts. */
  const end = new Int32Array(B);
  for (let i = 0; i < mask.length; i++) if (mask[i]! > 0) end[Math.floor(i / T)] = (i % T) + 1;
  for (const rows of batch.members) {
    for (const b of rows) {
      const others = rows.filter((other) => sign[other]! * sign[b]! < 0);
      for (let t = 0; t < T; t++) {
        const i = b * T + t;
        if (!(mask[i]! > 0)) continue;
        const shares = others.some((other) => {
          // The same place from the end, around the edge as in the original.
          const mirrored = (((t - end[b]! + end[other]!) % T) + T) % T;
          return [t, mirrored].some((at) => mask[other * T + at]! > 0 && ids[other * T + at] === ids[i]);
        });
        if (shares) factor[i] = sign[b]! > 0 ? 2 : 0;
      }
    }
  }
  return factor;
}
