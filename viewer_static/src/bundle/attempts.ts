/**
 * A resumed trainer starts again at a checkpoint, so some updates were made twice: the later ones led to the model, the
 * earlier ones are superseded. The rule is that of `unipo_hooks.bundle.entries`.
 */
import type { Attempt, Kind } from "./types";

interface Line {
  kind: Kind;
  attempt: number;
  update: number;
  step: number;
}

/**
 * Whether a line is superseded. Training counts by update: from where a later attempt started on. Evaluations have a
 * counter of their own and go by the trainer's step: `metrics` are all metrics lines, which tell the step of the last
 * update an attempt is still good for.
 */
export function supersededBy(attempts: readonly Attempt[], metrics: readonly Line[]): (line: Line) => boolean {
  const ends = new Map<number, { update: number; step: number }>();
  for (const { attempt } of attempts) {
    const later = attempts.filter((other) => other.attempt > attempt).map((other) => other.first_update);
    if (!later.length) continue;
    const update = Math.min(...later);
    let step = -1;
    for (const line of metrics) {
      if (line.kind === "train" && line.attempt <= attempt && line.update < update) step = Math.max(step, line.step);
    }
    ends.set(attempt, { update, step });
  }
  return (line) => {
    const end = ends.get(line.attempt);
    if (!end) return false;
    return line.kind === "train" ? line.update >= end.update : line.step > end.step;
  };
}
