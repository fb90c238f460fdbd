/** From a spec and a batch to what every token's objective, gradient weight and share of the loss is. */
import { judged, multiplicities, withoutDroppedGroups } from "./advantages";
import { check, inputs, needs, withHyperParameters } from "./describe";
import { require, type Batch } from "./inputs";
import { areFinite } from "./numbers";
import { objectiveOf, type Objective, type PerToken } from "./objective";
import type { Prepared } from "./prepared";
import { merged } from "./slots";
import { AlgorithmError, type AlgorithmSpec, type Component, type ConstraintTerm, type Evaluation } from "./types";

/** A log-probability above 0 by more than this is no rounding. */
const POSITIVE = 1e-6;

/** Arrays of an objective, with the names messages give them. */
const ARRAYS: Readonly<Record<keyof PerToken, string>> = {
  advantages: "advantages",
  ratio: "ratio",
  policyObjective: "policy_objective",
  constraint: "constraint",
  policyWeight: "policy_weight",
  constraintWeight: "constraint_weight",
  mask: "mask",
  aggregation: "aggregation",
  // A weight that is not finite shows in what it multiplies, a log-ratio in the ratio.
  weight: "",
  logRatio: "",
};
const NAMES = Object.keys(ARRAYS) as readonly (keyof PerToken)[];
const LOSSES = { policyLoss: "policy_loss", constraintLoss: "constraint_loss", entropyLoss: "entropy_loss" } as const;
type Loss = keyof typeof LOSSES;
const LOSS_NAMES = Object.keys(LOSSES) as readonly Loss[];

/**
 * Computes an algorithm's objective on a batch.
 *
 * `changes` are hyper-parameters by name or path (`epsilon_high`, `constraint.0.beta`, `mixture.1.gate.gamma`). Throws
 * MissingInputError naming the channel that is missing and how to capture it, and AlgorithmError where the definition or
 * a hyper-parameter is wrong, or a part is one of a user's own, which this page has no code for.
 */
export function evaluate(
  spec: AlgorithmSpec,
  batch: Batch,
  changes: Readonly<Record<string, unknown>> = {},
): Evaluation {
  const chosen = computable(spec, changes);
  require(batch, needs(chosen), chosen.id);
  const { B, T } = batch;
  if (B === 0 || T === 0) return evaluation(chosen, B, T, nothing(B * T), new Uint8Array(B * T), []);
  const prepared = batch.prepared(inputs(chosen));
  const objective =
    chosen.mixture.length > 0 ? mixed(chosen, prepared) : objectiveOf(chosen.parts, prepared, prepared.mask);
  const notes = [...notesOn(chosen, prepared), ...objective.notes, ...notFinite(objective)];
  return evaluation(chosen, B, T, objective, prepared.invalid, notes);
}

/**
 * Advantages of a batch that holds whole groups (one a response, or one a token where they differ), how often each
 * response takes part, and what is to be told of them. Only what an algorithm makes of rewards is computed and needed.
 */
export function advantagesOf(
  spec: AlgorithmSpec,
  batch: Batch,
): { advantages: Float64Array; often: Float64Array; notes: readonly string[] } {
  const chosen = computable(spec, {});
  require(batch, needs(chosen, ["filter", "reward", "baseline", "scale", "modulation"]), chosen.id);
  const { B, T } = batch;
  const often = new Float64Array(B).fill(chosen.mixture.length > 0 ? 0 : 1);
  if (B === 0 || T === 0) return { advantages: new Float64Array(B), often, notes: [] };
  const prepared = batch.prepared(inputs(chosen));
  const advantages = new Float64Array(B * T);
  const notes = new Set<string>();
  let perToken = false;
  for (const { parts, batch: own, rows } of componentsOf(chosen, prepared)) {
    const times = multiplicities(parts, own);
    const found = judged(parts, withoutDroppedGroups(own, times));
    found.notes.forEach((note) => notes.add(note));
    perToken ||= found.perToken;
    for (let b = 0; b < B; b++) {
      if (!rows[b]) continue;
      often[b] = times[b]!;
      advantages.set(found.values.subarray(b * T, (b + 1) * T), b * T);
    }
  }
  const shown = perToken ? advantages : often.map((_, b) => advantages[b * T]!);
  return { advantages: shown, often, notes: [...notesOn(chosen, prepared), ...notes] };
}

function computable(spec: AlgorithmSpec, changes: Readonly<Record<string, unknown>>): AlgorithmSpec {
  if (spec.display !== null) {
    throw new AlgorithmError(
      `${spec.id} is only shown: it came as UNIPO cards, which say nothing that can be computed`,
    );
  }
  check(spec, false);
  return withHyperParameters(spec, changes);
}

interface Part {
  readonly component: Component | null;
  readonly parts: AlgorithmSpec["parts"];
  /** The batch counting the component's rows alone. */
  readonly batch: Prepared;
  /** B: 1 where a row is the component's. */
  readonly rows: Uint8Array;
}

/** The components of a mixture, each on its own rows; of an algorithm that is none, itself on every row. */
function componentsOf(spec: AlgorithmSpec, batch: Prepared): Part[] {
  if (spec.mixture.length === 0) {
    return [{ component: null, parts: spec.parts, batch, rows: new Uint8Array(batch.B).fill(1) }];
  }
  const source = batch.get("source");
  return spec.mixture.map((component) => {
    const rows = Uint8Array.from(source, (value) => (value === component.source ? 1 : 0));
    const counting = batch.countingRows(rows);
    const own = component.statistics === "own" && batch.has("reward") ? counting.scoring(rows) : counting;
    return { component, parts: merged(spec.parts, component.parts), batch: own, rows };
  });
}

function mixed(spec: AlgorithmSpec, batch: Prepared): Objective {
  const { B, T } = batch;
  const whole = nothing(B * T);
  const notes = new Set<string>();
  const terms: ConstraintTerm[] = [];
  for (const { component, parts, batch: own, rows } of componentsOf(spec, batch)) {
    const { coefficient, denominator } = component!;
    const part = objectiveOf(parts, own, denominator === "own" ? own.mask : batch.mask);
    part.notes.forEach((note) => notes.add(note));
    for (const name of NAMES) {
      // A component's coefficient is part of its aggregation, and so of its gradient weight.
      const isScaled = name === "policyWeight" || name === "constraintWeight" || name === "aggregation";
      add(whole[name], part[name], rows, isScaled ? coefficient : 1, T);
    }
    for (const name of LOSS_NAMES) whole[name] += part[name] * coefficient;
    for (const term of part.constraints) addTerm(terms, term, rows, coefficient, T);
    for (let i = 0; i < whole.clipped.length; i++) {
      whole.clipped[i]! += part.clipped[i]!;
      if (!rows[Math.floor(i / T)]) continue;
      whole.low[i] = part.low[i]!;
      whole.high[i] = part.high[i]!;
    }
  }
  return { ...whole, constraints: terms, notes: [...notes] };
}

/** Adds what is of some rows, times a factor. */
function add(to: Float64Array, values: Float64Array, rows: Uint8Array, factor: number, T: number): void {
  for (let i = 0; i < to.length; i++) to[i]! += values[i]! * rows[Math.floor(i / T)]! * factor;
}

/** Adds a component's constraint to that of the same place and kind of components before it. */
function addTerm(terms: ConstraintTerm[], term: ConstraintTerm, rows: Uint8Array, factor: number, T: number): void {
  const key = JSON.stringify(term.use);
  const at = terms.findIndex((each) => each.number === term.number && JSON.stringify(each.use) === key);
  const before = terms[at];
  const size = term.penalty.length;
  const penalty = before?.penalty ?? new Float64Array(size);
  const weight = before?.weight ?? new Float64Array(size);
  add(penalty, term.penalty, rows, 1, T);
  add(weight, term.weight, rows, factor, T);
  const sum = { ...term, penalty, weight, loss: (before?.loss ?? 0) + term.loss * factor };
  if (before === undefined) terms.push(sum);
  else terms[at] = sum;
}

/** What any objective is where nothing counts. */
function nothing(size: number): Objective {
  const arrays = Object.fromEntries(NAMES.map((name) => [name, new Float64Array(size)])) as unknown as PerToken;
  return {
    ...arrays,
    low: new Float64Array(size).fill(-Infinity),
    high: new Float64Array(size).fill(Infinity),
    clipped: new Uint8Array(size),
    constraints: [],
    policyLoss: 0,
    constraintLoss: 0,
    entropyLoss: 0,
    notes: [],
  };
}

function evaluation(
  spec: AlgorithmSpec,
  B: number,
  T: number,
  objective: Objective,
  invalid: Uint8Array,
  notes: readonly string[],
): Evaluation {
  const { policyObjective, constraint, policyWeight, constraintWeight, aggregation } = objective;
  const size = B * T;
  const tokenObjective = new Float64Array(size);
  const gradientWeight = new Float64Array(size);
  let magnitude = 0;
  for (let i = 0; i < size; i++) {
    tokenObjective[i] = policyObjective[i]! - constraint[i]!;
    gradientWeight[i] = policyWeight[i]! + constraintWeight[i]!;
    magnitude += Math.abs(aggregation[i]!) * (Math.abs(policyObjective[i]!) + Math.abs(constraint[i]!));
  }
  const loss = objective.policyLoss + objective.constraintLoss + objective.entropyLoss;
  return { spec, B, T, ...objective, tokenObjective, gradientWeight, magnitude, loss, invalid, notes };
}

/** A note that names what of an objective is not finite. */
function notFinite(objective: Objective): string[] {
  const losses = LOSS_NAMES.filter((name) => !Number.isFinite(objective[name])).map((name) => LOSSES[name]);
  const arrays = NAMES.filter((name) => ARRAYS[name] !== "" && !areFinite(objective[name]));
  const names = [...losses, ...arrays.map((name) => ARRAYS[name])];
  return names.length === 0 ? [] : [`not finite, as numbers of this size overflow: ${names.join(", ")}`];
}

/** What a reader should know of a batch. */
function notesOn(spec: AlgorithmSpec, batch: Prepared): string[] {
  const notes: string[] = [];
  const { invalid, scored, valid } = batch;
  const broken = count(invalid, (is) => is !== 0);
  if (broken > 0) notes.push(`${broken} tokens hold a NaN or an infinity: they contribute nothing`);
  const unscored = count(scored, (is) => is === 0);
  if (unscored > 0) notes.push(`${unscored} responses have no finite reward: their advantage is 0`);
  for (const name of batch.names.filter((each) => each.endsWith("log_probs"))) {
    const positive = count(batch.get(name), (value, i) => value > POSITIVE && valid[i]! > 0);
    if (positive === 0) continue;
    const where = name === "log_probs" ? "" : ` in ${name}`;
    notes.push(`${positive} tokens have a log-probability above 0${where}: is a sign swapped?`);
  }
  if (spec.mixture.length > 0) {
    const known = new Set(spec.mixture.map(({ source }) => source));
    const unknown = count(batch.get("source"), (value) => !known.has(value));
    if (unknown > 0) {
      notes.push(`${unknown} responses are of a source ${spec.id} has no component for: they contribute nothing`);
    }
  }
  return notes;
}

function count(values: ArrayLike<number>, is: (value: number, i: number) => boolean): number {
  let found = 0;
  for (let i = 0; i < values.length; i++) if (is(values[i]!, i)) found++;
  return found;
}
