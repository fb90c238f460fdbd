/** What an algorithm makes of an opened update: every token's objective and push, and the loss. */
import type { Pass, Step } from "../bundle/step";
import type { Manifest } from "../bundle/types";
import { type AlgorithmSpec, evaluate, type Evaluation } from "../objective";
import { batchOf, type MicroBatch } from "./batches";
import { type Captured, captured } from "./captured";
import { gapOf } from "./gap";
import { ownSpec } from "./own";
import { type Plan, planOwn, planWhatIf } from "./plan";
import { advantagesIn, judge, oftenIn } from "./rollouts";
import { hasStored, storedEvaluation, storedNote } from "./stored";
import type { Analysis, MicroBatchResult, PassResult } from "./types";

/**
 * `own`: the run's own algorithm, as it was run; else what another would have made of the same tokens. Never throws:
 * `missing` says why nothing could be computed.
 */
export function analyse(step: Step, manifest: Manifest, spec: AlgorithmSpec, own: boolean): Analysis {
  try {
    const known = captured(step, manifest);
    const plan = planFor(known, spec, own);
    if (!plan.missing) return computed(known, spec, own, plan);
    if (own && hasStored(known)) {
      const results = known.microBatches.map((each) => resultOf(each, storedEvaluation(known, each, spec), spec));
      return finished(known, spec, own, { ...plan, notes: [...plan.notes, storedNote(plan.missing)] }, results);
    }
    return nothing(spec, own, plan.missing, plan.approximate);
  } catch (error) {
    return nothing(spec, own, wordsOf(error), []);
  }
}

/** What an algorithm would need and how well it could be had, without computing it. Never throws. */
export function available(
  step: Step,
  manifest: Manifest,
  spec: AlgorithmSpec,
): { missing: string; approximate: string[] } {
  try {
    const { missing, approximate } = planFor(captured(step, manifest), spec, false);
    return { missing, approximate: [...approximate] };
  } catch (error) {
    return { missing: wordsOf(error), approximate: [] };
  }
}

function planFor(known: Captured, spec: AlgorithmSpec, own: boolean): Plan {
  if (!known.microBatches.length) {
    return { missing: "No token of this update is stored.", approximate: [], notes: [], spec, judge: null, filter: null };
  }
  if (own) return planOwn(known, spec);
  const ofStep = whatIfs.get(known) ?? new WeakMap<AlgorithmSpec, Plan>();
  whatIfs.set(known, ofStep);
  const plan = ofStep.get(spec) ?? planWhatIf(known, spec, ownSpec(known.manifest, known.step.update.attempt));
  ofStep.set(spec, plan);
  return plan;
}

/** How what-ifs are computed: a list of every algorithm asks again and again. */
const whatIfs = new WeakMap<Captured, WeakMap<AlgorithmSpec, Plan>>();

function computed(known: Captured, spec: AlgorithmSpec, own: boolean, plan: Plan): Analysis {
  const notes = [...plan.notes];
  const judged = plan.judge && judge(known, plan.judge);
  const filtered = judged ?? (plan.filter && judge(known, plan.filter));
  if (judged) notes.push(...judged.notes);
  const results = known.microBatches.map((each) => {
    const advantages = judged ? advantagesIn(each, judged) : undefined;
    const often = filtered ? oftenIn(each, filtered) : undefined;
    return resultOf(each, evaluate(plan.spec, batchOf(each, advantages, often)), own ? spec : null);
  });
  return finished(known, spec, own, { ...plan, notes }, results);
}

interface Result extends MicroBatchResult {
  readonly of: MicroBatch;
}

/** `spec`: the run's own algorithm, where it is what was computed: only then is the trainer's loss to be expected. */
function resultOf(of: MicroBatch, evaluation: Evaluation, spec: AlgorithmSpec | null): Result {
  const { rank, number, whole, loss } = of;
  const { gap, tolerance } = gapOf(of, evaluation, spec);
  return { of, rank, number, evaluation, whole, loss, gap, tolerance };
}

function finished(
  known: Captured,
  spec: AlgorithmSpec,
  own: boolean,
  { approximate, notes }: Pick<Plan, "approximate" | "notes">,
  results: readonly Result[],
): Analysis {
  const passes = new Map<string, PassResult>();
  for (const { of, evaluation } of results) {
    of.passes.forEach((pass, b) => {
      if (pass.tokens) passes.set(pass.key, passResult(pass, evaluation, b));
    });
  }
  const sum = (value: (evaluation: Evaluation) => number) =>
    results.reduce((total, { of, evaluation }) => total + value(evaluation) / of.dataParallelSize, 0);
  return {
    spec,
    own,
    missing: "",
    approximate: [...new Set(approximate)],
    notes: [...new Set([...notes, ...results.flatMap(({ evaluation }) => evaluation.notes)])],
    passes,
    microBatches: results.map(({ of: _, ...result }) => result),
    loss: sum((evaluation) => evaluation.loss),
    policyLoss: sum((evaluation) => evaluation.policyLoss),
    constraintLoss: sum((evaluation) => evaluation.constraintLoss),
    whole: known.whole,
  };
}

/** Row `b` of an evaluation: views of its arrays, but for the push. */
function passResult(pass: Pass, evaluation: Evaluation, b: number): PassResult {
  const start = b * evaluation.T;
  const end = start + pass.tokens!.n;
  const row = (values: Float64Array) => values.subarray(start, end);
  const gradientWeight = row(evaluation.gradientWeight);
  return {
    pass,
    advantages: row(evaluation.advantages),
    ratio: row(evaluation.ratio),
    low: row(evaluation.low),
    high: row(evaluation.high),
    tokenObjective: row(evaluation.tokenObjective),
    policyWeight: row(evaluation.policyWeight),
    constraintWeight: row(evaluation.constraintWeight),
    gradientWeight,
    push: gradientWeight.map((weight) => (weight === 0 ? 0 : -weight)),
    clipped: evaluation.clipped.subarray(start, end),
    mask: row(evaluation.mask),
    weight: row(evaluation.weight),
    aggregation: row(evaluation.aggregation),
    penalties: evaluation.constraints.map(({ use, penalty, weight }) => ({ use, penalty: row(penalty), weight: row(weight) })),
  };
}

function nothing(spec: AlgorithmSpec, own: boolean, missing: string, approximate: readonly string[]): Analysis {
  return {
    spec,
    own,
    missing,
    approximate,
    notes: [],
    passes: new Map(),
    microBatches: [],
    loss: NaN,
    policyLoss: NaN,
    constraintLoss: NaN,
    whole: false,
  };
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
