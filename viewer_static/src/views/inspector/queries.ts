/** What a brush can pick besides a range of a channel: questions of yes and no, and ranges that people ask for. */
import type { Analysis } from "../../analysis/types";
import type { Pass } from "../../bundle/step";
import type { Brush } from "../../state/hash";
import { channelValues, resultOf } from "./values";

export interface Query {
  label: string;
  brush: Brush;
  /** Whether it can be asked without an algorithm. */
  plain: boolean;
}

const yes = (channel: string): Brush => ({ channel, low: 1, high: 1 });

export const QUERIES: readonly Query[] = [
  { label: "clipped and A < 0", brush: yes("clipped_negative"), plain: false },
  { label: "clipped and A > 0", brush: yes("clipped_positive"), plain: false },
  { label: "masked", brush: yes("masked"), plain: true },
  { label: "|log-ratio| > 0.5", brush: { channel: "abs_log_ratio", low: 0.5, high: Infinity }, plain: true },
  { label: "entropy > 1", brush: { channel: "entropies", low: 1, high: Infinity }, plain: true },
];

export function sameBrush(a: Brush | null, b: Brush | null): boolean {
  return a?.channel === b?.channel && a?.low === b?.low && a?.high === b?.high;
}

/** Which tokens of a pass a brush picks; `null` where what it asks for is not known there. */
export function picks(brush: Brush, pass: Pass, analysis: Analysis | null): ((i: number) => boolean) | null {
  const { tokens } = pass;
  if (!tokens) return null;
  const { channel, low, high } = brush;
  if (channel === "masked") return (i) => !tokens.mask[i];
  if (channel === "clipped_negative" || channel === "clipped_positive") {
    const result = resultOf(analysis, pass);
    if (!result) return null;
    const sign = channel === "clipped_negative" ? -1 : 1;
    return (i) => Boolean(result.clipped[i]) && (result.advantages[i] as number) * sign > 0;
  }
  const values = channelValues(pass, channel === "abs_log_ratio" ? "log_ratio" : channel, analysis);
  if (!values) return null;
  return (i) => {
    const value = channel === "abs_log_ratio" ? Math.abs(values[i] as number) : (values[i] as number);
    return Boolean(tokens.mask[i]) && value >= low && value <= high;
  };
}

/** The tokens of a pass that a brush picks. */
export function pickedOf(brush: Brush, pass: Pass, analysis: Analysis | null): number[] {
  const inside = picks(brush, pass, analysis);
  const found: number[] = [];
  for (let i = 0; inside && i < (pass.tokens?.n ?? 0); i++) if (inside(i)) found.push(i);
  return found;
}
