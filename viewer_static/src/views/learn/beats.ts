/** The beats of the walk: their names, the view a phone shows, and the parts of the panes they speak of. */
import type { Kind } from "../../bundle/types";
import type { View } from "../../state/hash";

export interface Beat {
  name: string;
  view: View;
  /** An icon of 16 × 16. */
  icon: string;
  /** Parts that stay lit, as selectors; those that are not there are passed over. */
  lit: readonly string[];
  /** The same of an evaluation, which stops at its rewards. */
  evaluated?: readonly string[];
}

const slots = (...names: string[]) => names.flatMap((name) => [`[data-slot~="${name}"]`, `[data-heading~="${name}"]`]);

export const BEATS: readonly Beat[] = [
  { name: "Prompts", view: "step", icon: "M3 3h10v7H7l-3 3v-3H3z", lit: ["[data-testid=prompt]", "[data-testid=group-card]"] },
  { name: "Responses", view: "step", icon: "M3 4h10M3 8h7M3 12h9", lit: ["[data-part=tokens]", "[data-testid=rendered-text]"] },
  { name: "Rewards", view: "step", icon: "M3 13V8M8 13V3M13 13v-3", lit: ["[data-part=reward]", ...slots("reward")] },
  { name: "Advantages", view: "step", evaluated: [], icon: "M3 8h10M8 3v10", lit: ["[data-part=advantage]", "[data-testid=flat]", "[data-testid=no-signal]", ...slots("filter", "baseline", "scale", "modulation", "advantage")] },
  { name: "Token objectives", view: "step", evaluated: ["[data-part=tokens]"], icon: "M2 12V8h3v4M7 12V4h3v8M12 12V9h3v3", lit: ["[data-part=tokens]", "[data-testid=channels]", "[data-testid=token-card]", ...slots("ratio", "bounds", "gate", "weight", "mask", "constraint", "objective")] },
  { name: "Aggregation", view: "algorithm", evaluated: [], icon: "M12 3H4l4 5-4 5h8", lit: ["[data-testid=result]", ...slots("aggregation")] },
  { name: "Update", view: "training", evaluated: [], icon: "M13 8a5 5 0 1 1-1.500-3.500M13 2v3h-3", lit: ["[data-testid=chart]", "[data-testid=chips]", "[data-testid=metric-table]"] },
];

/** What stays lit at a beat. */
export function litAt({ lit, evaluated }: Beat, kind: Kind): readonly string[] {
  return kind === "eval" ? (evaluated ?? lit) : lit;
}

/** How long a beat stays while the walk plays by itself, in milliseconds: about as long as its words take to read. */
export function readingTime(words: number): number {
  return Math.min(45_000, 5_000 + words * 330);
}
