/** Whether what is shown is the trainer's own: the proof behind the badge, in numbers and in words. */
import type { Step } from "../bundle/step";
import type { Manifest, MicroBatchLine } from "../bundle/types";
import { count, number } from "../format";
import { bonusIsUnknown, recomputedLoss } from "./gap";
import { captured, type Captured } from "./captured";
import { readOwn } from "./own";
import type { Analysis, MicroBatchResult, Reconciled } from "./types";

/** `own`: the run's own algorithm on the update, as `analyse` gives it. Never throws. */
export function reconcile(step: Step, manifest: Manifest, own: Analysis | null): Reconciled {
  try {
    return compared(step, manifest, own);
  } catch (error) {
    // Numbers of a damaged bundle that no array can be made of: `own` says so too.
    const why = own?.missing || (error instanceof Error ? error.message : String(error));
    const nothing = { gap: null, tolerance: null, storedGap: null, storedTolerance: null, rows: [], notes: [] };
    return { ...nothing, status: "unknown", why };
  }
}

function compared(step: Step, manifest: Manifest, own: Analysis | null): Reconciled {
  const known = captured(step, manifest);
  const { attempt } = step.update;
  const notes = manifest.attempts.find((each) => each.attempt === attempt)?.algorithm_notes ?? [];
  const stored = storedGap(known.lines);
  const rows = (own?.microBatches ?? []).map((each) => rowOf(known, own!, each));
  const whole = (own?.microBatches ?? []).filter((each) => each.gap !== null);
  const worst = worstOf(whole.map(({ gap, tolerance }) => ({ gap: gap!, tolerance })));
  const base = {
    gap: worst?.gap ?? null,
    tolerance: worst?.tolerance ?? null,
    storedGap: stored?.gap ?? null,
    storedTolerance: stored?.tolerance ?? null,
    rows,
    notes,
  };
  const cause = notes.length ? ` Likely cause: ${notes.join("; ")}` : "";
  if (worst) {
    const all = whole.length === known.lines.length;
    const where = all ? "" : ` (${whole.length} of ${count(known.lines.length, "forward pass", "forward passes")}, whose responses are all stored)`;
    return isAbove(worst)
      ? { ...base, status: "off", why: `${offWords(worst, "Recomputed here")}${where}.${cause}` }
      : { ...base, status: "reproduced", why: `${sameWords(worst, "Recomputed here")}${where}.` };
  }
  const why = whyNot(known, own, readOwn(manifest, attempt).fault);
  if (!stored) return { ...base, status: "unknown", why: own || !notes.length ? why : `${why} ${notes.join("; ")}` };
  return isAbove(stored)
    ? { ...base, status: "off", why: `${why} ${offWords(stored, "Compared while training")}.${cause}` }
    : { ...base, status: "reproduced", why: `${why} ${sameWords(stored, "Compared while training")}.` };
}

interface Worst {
  readonly gap: number;
  readonly tolerance: number;
}

function sameWords({ gap }: Worst, when: string): string {
  return `${when}, the loss is the trainer's to ${number(Math.abs(gap), 2)}, which is rounding`;
}

function offWords({ gap, tolerance }: Worst, when: string): string {
  if (!Number.isFinite(gap)) return `${when}, the loss is not a number`;
  return `${when}, the loss is ${number(Math.abs(gap), 2)} from the trainer's; rounding explains ${number(tolerance, 2)}`;
}

/** Whether a loss is further off than rounding explains; also where it is not a number. */
function isAbove({ gap, tolerance }: Worst): boolean {
  return !(Math.abs(gap) <= tolerance);
}

/** The gap that is largest in units of its tolerance. */
function worstOf(gaps: readonly Worst[]): Worst | null {
  const size = ({ gap, tolerance }: Worst) => (Number.isNaN(gap) ? Infinity : Math.abs(gap) / tolerance);
  return gaps.reduce<Worst | null>((worst, each) => (!worst || size(each) > size(worst) ? each : worst), null);
}

/** What was found while training. A gap that is not a number is null in JSON; its tolerance says that it was measured. */
function storedGap(lines: readonly MicroBatchLine[]): Worst | null {
  return worstOf(
    lines.flatMap(({ loss_gap, loss_tolerance }) =>
      loss_tolerance === null ? [] : [{ gap: loss_gap ?? NaN, tolerance: loss_tolerance }],
    ),
  );
}

/** Why no loss could be compared here. */
function whyNot(known: Captured, own: Analysis | null, fault: string): string {
  if (!own) return fault;
  if (own.missing) return own.missing;
  if (known.lines.every((line) => line.loss === null)) return "The trainer's loss was not captured.";
  if (known.storedRows < known.rows) {
    return `Only ${known.storedRows} of ${known.rows} responses of the update are stored, so its loss cannot be added up here.`;
  }
  if (known.lines.some((line) => bonusIsUnknown({ line }))) {
    return "The trainer's loss holds an entropy bonus whose size was not captured.";
  }
  return "The trainer's loss was not captured for the forward passes that are stored.";
}

function rowOf(known: Captured, own: Analysis, result: MicroBatchResult): Reconciled["rows"][number] {
  const of = known.microBatches.find((each) => each.rank === result.rank && each.number === result.number)!;
  const name = `forward pass ${result.number + 1}`;
  const rank = of.line.data_parallel_rank ?? (known.ranks > 1 ? result.rank : null);
  return {
    name: rank === null ? name : `rank ${rank}, ${name}`,
    trainer: result.loss,
    recomputed: recomputedLoss(of, result.evaluation, own.spec),
    gap: result.gap,
  };
}
