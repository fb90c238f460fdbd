/**
 * How an algorithm is computed on what was captured: with whose advantages, as which algorithm of the engine, what is
 * missing and what is only approximate. Looks at names alone, so that a list of every algorithm can be made at once.
 */
import { count } from "../format";
import {
  type AlgorithmSpec,
  asRecorded,
  describePart,
  givenAdvantages,
  howToCapture,
  INPUTS,
  inputs,
  needs,
  parameters,
  type Parts,
  type PartUse,
  type Slot,
  uses,
} from "../objective";
import type { Captured } from "./captured";

/** Slots that make an advantage of a reward. */
export const ADVANTAGE = ["reward", "baseline", "scale", "modulation"] as const satisfies readonly Slot[];

/** What stands where a slot is not to be computed. */
const NEUTRAL: Parts = {
  filter: [],
  reward: [],
  baseline: { part: "unit" },
  scale: [],
  modulation: [],
  ratio: { part: "one" },
  bounds: { part: "unbounded" },
  gate: { part: "log_prob" },
  weight: [],
  mask: [],
  constraint: [],
  aggregation: { part: "token_sum" },
};

export interface Plan {
  /** Why it cannot be computed; "" where it can. */
  readonly missing: string;
  readonly approximate: readonly string[];
  readonly notes: readonly string[];
  /** What every micro-batch is evaluated with. */
  readonly spec: AlgorithmSpec;
  /** What advantages are computed with on whole rollouts; `null` where those the trainer recorded are taken. */
  readonly judge: AlgorithmSpec | null;
  /** Whether who takes part is computed on whole rollouts, though the advantages are the trainer's. */
  readonly filter: AlgorithmSpec | null;
}

/** The algorithm with other parts; no mixture, whose components would bring their own back. */
export function withParts(spec: AlgorithmSpec, changes: Partial<Parts>): AlgorithmSpec {
  return { ...spec, mixture: [], parts: { ...spec.parts, ...changes } };
}

/** Only the named slots of an algorithm; nothing happens in the others. */
export function onlySlots(spec: AlgorithmSpec, slots: readonly Slot[]): AlgorithmSpec {
  const kept = Object.fromEntries(slots.map((slot) => [slot, spec.parts[slot]]));
  return withParts(spec, { ...NEUTRAL, ...kept });
}

/** Parts of an algorithm that this page has no code for, as `gate cubed`. */
function unknownParts(spec: AlgorithmSpec): string[] {
  return uses(spec.parts)
    .filter(({ slot, use }) => describePart(slot, use.part) === null)
    .map(({ slot, use }) => `${slot} ${use.part}`);
}

/** What is missing, in one line: the first input and how it is captured, and the names of the others. */
function missingInputs(spec: AlgorithmSpec, names: readonly string[], captured: Captured): string {
  const [first, ...others] = names.filter((name) => !captured.channels.has(name));
  if (first === undefined) return "";
  const meaning = INPUTS[first]?.meaning.replace(/\.$/, "");
  const what = meaning ? `${first} (${meaning[0]!.toLowerCase()}${meaning.slice(1)})` : first;
  const more = others.length ? ` It lacks ${others.join(", ")} too.` : "";
  return `${spec.name || spec.id} needs ${what}, which was not captured. To have it: ${howToCapture(first)}.${more}`;
}

const NOTHING = { approximate: [], notes: [], judge: null, filter: null };

/** The run's own algorithm, as it was run: its advantages and masks are those the trainer recorded. */
export function planOwn(captured: Captured, spec: AlgorithmSpec): Plan {
  if (spec.display) return { ...NOTHING, spec, missing: onlyShown(spec) };
  const recorded = asRecorded(spec, captured.channels);
  const unknown = unknownParts(recorded);
  if (unknown.length) return { ...NOTHING, spec, missing: noCode(spec, unknown) };
  return {
    ...NOTHING,
    spec: recorded,
    missing: missingInputs(spec, needs(recorded), captured),
    approximate: ofSample(captured, recorded),
  };
}

/** An algorithm on the tokens of a run that was trained with another, or with other hyper-parameters. */
export function planWhatIf(captured: Captured, spec: AlgorithmSpec, own: AlgorithmSpec | null): Plan {
  if (spec.display) return { ...NOTHING, spec, missing: onlyShown(spec) };
  if (spec.mixture.length) {
    const missing = missingInputs(spec, needs(spec), captured);
    return { ...NOTHING, spec, missing: missing || `${spec.name || spec.id} mixes responses of several sources, which this page does not tell apart.` };
  }
  const advantages = whoseAdvantages(captured, spec, own);
  const evaluated = givenAdvantages(withParts(spec, asRun(captured, spec, own)), advantages.modulated);
  const judged = advantages.judge ?? advantages.filter;
  const unknown = [...unknownParts(evaluated), ...(judged ? unknownParts(judged) : [])];
  if (unknown.length) return { ...NOTHING, spec, missing: noCode(spec, unknown) };
  const needed = (of: AlgorithmSpec) => {
    const given = needs(of).filter((name) => name !== "advantages" || advantages.judge === null);
    return [...new Set([...(judged ? needs(judged) : []), ...given])];
  };
  const missing = missingInputs(spec, needed(evaluated), captured);
  const isConstraint = missing !== "" && !missingInputs(spec, needed(withParts(evaluated, { constraint: [] })), captured);
  return {
    missing: isConstraint ? missing + wayOut(captured, evaluated) : missing,
    approximate: [
      ...advantages.approximate,
      ...(judged ? ofRollouts(captured, judged) : []),
      ...ofSample(captured, evaluated),
    ],
    notes: spec.parts.constraint.some(isBonus) ? [...advantages.notes, NO_BONUS] : advantages.notes,
    spec: evaluated,
    judge: advantages.judge,
    filter: advantages.filter,
  };
}

const NO_BONUS = "The entropy bonus is left out: it is over the whole vocabulary, so no token has a share in it.";

function isBonus(use: PartUse): boolean {
  return use.part === "entropy_bonus";
}

/**
 * What of a what-if is taken as the trainer ran it: masks and sampler weights that are the run's own were recorded. Filters
 * are applied to whole rollouts, and the entropy bonus is left out as it is of the run's own loss.
 */
function asRun(captured: Captured, spec: AlgorithmSpec, own: AlgorithmSpec | null): Partial<Parts> {
  const slots = (["mask", "weight"] as const).filter((slot) => own && isComposed(own) && sameParts(spec, own, slot));
  const recorded = slots.length ? asRecorded(spec, captured.channels).parts : spec.parts;
  return {
    filter: [],
    ...Object.fromEntries(slots.map((slot) => [slot, recorded[slot]])),
    constraint: spec.parts.constraint.filter((use) => !isBonus(use)),
  };
}

/** Another way out than capturing what is missing, where constraints alone need it: they can be left out. */
function wayOut(captured: Captured, evaluated: AlgorithmSpec): string {
  const off = evaluated.parts.constraint
    .filter((use) => needs(onlySlots(withParts(evaluated, { constraint: [use] }), ["constraint"])).some((name) => !captured.channels.has(name)))
    .map((use) => `${use.part}'s ${"beta" in parameters("constraint", use) ? "beta" : "coefficient"}`);
  return ` Or leave it out: set ${off.join(" and ")} to 0.`;
}

interface Advantages extends Pick<Plan, "approximate" | "notes" | "judge" | "filter"> {
  /** Whether what an algorithm makes of an advantage from token to token is in them already. */
  readonly modulated: boolean;
}

/** Where a what-if's advantages come from. */
function whoseAdvantages(captured: Captured, spec: AlgorithmSpec, own: AlgorithmSpec | null): Advantages {
  const recorded = captured.channels.has("advantages");
  const filter = sameFilter(spec, own) ? null : onlySlots(spec, ["filter"]);
  if (recorded && own && isComposed(own) && sameAdvantages(spec, own)) {
    const notes = ["Its advantages are made as the run's own are: the trainer's are taken, exactly."];
    return { modulated: true, judge: null, filter, approximate: [], notes };
  }
  if (spec.parts.baseline.part === "recorded") {
    const notes = ["It takes advantages as they are given: the trainer's."];
    return { modulated: false, judge: null, filter, approximate: [], notes };
  }
  if (recorded && captured.withoutReward === captured.sampled && needs(onlySlots(spec, ADVANTAGE)).includes("reward")) {
    const instead = namesIn(spec, ["filter", ...ADVANTAGE.slice(0, 3)]);
    const approximate = [`No reward of this rollout is known: the trainer's advantages stand in for ${instead}.`];
    return { modulated: false, judge: null, filter: null, approximate, notes: [] };
  }
  // What looks at a token or a response alone is done where it was measured; what compares responses where they all are.
  const whole = onlySlots(spec, ["filter", ...ADVANTAGE]);
  const wide = spec.parts.modulation.filter((use) => isWide(scopeOf("modulation", use)));
  const isModulated = spec.parts.modulation.length > 0;
  const names = isModulated ? inputs(onlySlots(spec, ["modulation"])).filter((name) => captured.channels.has(name)) : [];
  const late = names.length > 0 && (!wide.length || names.some((name) => !captured.complete(name)));
  return {
    modulated: !late,
    judge: late ? withParts(whole, { modulation: [] }) : whole,
    filter: null,
    approximate: late
      ? wide.map(({ part }) => `${part} compares responses by what only this update measured: here those of a forward pass.`)
      : [],
    notes: ["Its advantages are computed here, from the rewards of the whole rollout."],
  };
}

/** What is approximate about advantages, because not everything is known of a rollout. */
function ofRollouts(captured: Captured, judge: AlgorithmSpec): string[] {
  const found: string[] = [];
  const wide = uses(judge.parts).filter(({ slot, use }) => isWide(scopeOf(slot, use)));
  const names = wide.length && !captured.everything ? inputs(judge).filter((name) => captured.channels.has(name)) : [];
  for (const { slot, use } of wide) {
    const partial = names.filter((name) => !captured.complete(name, scopeOf(slot, use) === "group"));
    if (partial.length) {
      const which = partial.join(" and ");
      found.push(`${use.part} compares only those responses of the rollout whose ${which} can be had from this update.`);
    }
    if (!captured.allRanks) {
      const there = captured.step.update.parts.length;
      found.push(`${use.part} compares the responses of ${there} of ${captured.ranks} ranks: the others are not there.`);
    }
  }
  const unknown = captured.withoutReward;
  if (unknown && needs(judge).includes("reward")) {
    found.push(`${count(unknown, "response")} of the rollout ${unknown === 1 ? "has" : "have"} no reward: no advantage, and no part in any mean.`);
  }
  return found;
}

/** What is approximate where only a sample of an update's responses is stored. */
function ofSample(captured: Captured, evaluated: AlgorithmSpec): string[] {
  const stored = captured.storedRows;
  const all = captured.rows;
  if (stored >= all) return [];
  const found: string[] = [];
  for (const { slot, use } of uses(evaluated.parts)) {
    // What an aggregation divides by was stored, whatever was sampled.
    if (slot === "aggregation" || slot === "filter" || slot === "baseline") continue;
    if (scopeOf(slot, use) === "batch") {
      found.push(`${use.part} looks at the whole forward pass, of which ${stored} of ${all} responses are stored.`);
    } else if (slot === "mask" && parameters(slot, use).denominator === true) {
      found.push(`How many tokens ${use.part} leaves out of the mean is taken from the ${stored} of ${all} responses that are stored.`);
    }
  }
  return found;
}

/** Whether an algorithm is made of one composition of parts: neither a mixture nor only shown. */
function isComposed(spec: AlgorithmSpec): boolean {
  return !spec.display && !spec.mixture.length;
}

function sameAdvantages(a: AlgorithmSpec, b: AlgorithmSpec): boolean {
  return ADVANTAGE.every((slot) => sameParts(a, b, slot));
}

/** Whether the filter has done its work before anything was captured, or there is none. */
function sameFilter(spec: AlgorithmSpec, own: AlgorithmSpec | null): boolean {
  return !spec.parts.filter.length || (own !== null && isComposed(own) && sameParts(spec, own, "filter"));
}

/** Whether two algorithms have the same parts in a slot, with the same hyper-parameters. */
function sameParts(a: AlgorithmSpec, b: AlgorithmSpec, slot: Slot): boolean {
  return a.parts[slot] === b.parts[slot] || filled(a, slot) === filled(b, slot);
}

/** What is in a slot as text, every hyper-parameter written out; read once for a list of every algorithm. */
function filled({ parts }: AlgorithmSpec, slot: Slot): string {
  const known = written.get(parts) ?? new Map<Slot, string>();
  written.set(parts, known);
  let text = known.get(slot);
  if (text === undefined) {
    text = JSON.stringify(
      partsOf(parts, slot).map((use) => [use.part, Object.entries(parameters(slot, use)).sort(([x], [y]) => (x < y ? -1 : 1))]),
    );
    known.set(slot, text);
  }
  return text;
}

const written = new WeakMap<Parts, Map<Slot, string>>();

export function partsOf(parts: Parts, slot: Slot): readonly PartUse[] {
  const value = parts[slot];
  return Array.isArray(value) ? (value as readonly PartUse[]) : [value as PartUse];
}

function scopeOf(slot: Slot, use: PartUse): string {
  return describePart(slot, use.part)?.scope ?? "token";
}

function isWide(scope: string): boolean {
  return scope === "group" || scope === "batch";
}

function namesIn(spec: AlgorithmSpec, slots: readonly Slot[]): string {
  const names = slots.flatMap((slot) => partsOf(spec.parts, slot).map((use) => use.part)).filter((part) => part !== "none");
  return names.join(", ") || "the reward itself";
}

function onlyShown(spec: AlgorithmSpec): string {
  return `${spec.name || spec.id} is only shown: it came as cards, which say nothing that can be computed.`;
}

function noCode(spec: AlgorithmSpec, unknown: readonly string[]): string {
  return `${spec.name || spec.id} has a part of the user's own that this page has no code for: ${unknown.join(", ")}.`;
}
