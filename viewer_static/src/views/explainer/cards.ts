/** An algorithm as cards: five headings, twelve slots, one card a part, with a token's numbers where there is one. */
import { short, shortSigned } from "../../format";
import { type AlgorithmSpec, describePart, HEADINGS, type Heading, isOff, type PartUse, parameters, type Slot, SLOTS, uses } from "../../objective";
import { formula } from "./formulas";
import { annotate, sides, statements } from "./latex";
import { gateTakesRho, primed, primesOf } from "./notation";
import type { Reading } from "./reading";
import { sentence } from "./sentences";
import { defined, outcome, type Place, RATIOS, taken, type Term, term } from "./symbols";

export interface PartCard {
  slot: Slot;
  path: string;
  use: PartUse;
  title: string;
  /** LaTeX with marks for `terms`; "" where the part has no formula here. */
  latex: string;
  terms: readonly Term[];
  /** What it comes to at the token: "+2.27", "" where that is nothing by itself. */
  outcome: string;
  sentence: string;
  explanation: string;
  source: string;
  /** What it can be computed from: a token, its response, its group, the batch, or history. */
  scope: string;
  /** Hyper-parameters that have no symbol in the formula, written out. */
  settings: readonly { name: string; value: string; meaning: string }[];
}

export interface SlotCards {
  slot: Slot;
  name: string;
  /** What the slot decides, in half a sentence. */
  question: string;
  parts: readonly PartCard[];
  /** Says in words that the slot does nothing; "" where it does something. */
  idle: string;
}

export interface HeadingCards {
  heading: Heading;
  title: string;
  slots: readonly SlotCards[];
}

export const SLOT_NAMES: Readonly<Record<Slot, string>> = {
  filter: "Filter", reward: "Reward shaping", baseline: "Baseline", scale: "Scale", modulation: "Modulation", ratio: "Ratio",
  bounds: "Bounds", gate: "Gate", weight: "Weight", mask: "Mask", constraint: "Constraint", aggregation: "Aggregation",
};

const QUESTIONS: Readonly<Record<Slot, string>> = {
  filter: "which responses take part",
  reward: "what is made of the rewards first",
  baseline: "what a reward is compared with",
  scale: "what the difference is divided by",
  modulation: "how it changes from token to token",
  ratio: "how far the policy has moved",
  bounds: "where the gate bends",
  gate: "what ratio and advantage make of a token",
  weight: "further factors without a gradient",
  mask: "which tokens count",
  constraint: "what holds the policy back",
  aggregation: "how much a token weighs in the loss",
};

const IDLE: Readonly<Partial<Record<Slot, string>>> = {
  filter: "none: every response takes part",
  reward: "none: rewards as they are",
  scale: "none",
  modulation: "none: all tokens of a response alike",
  ratio: "none: not compared with the policy that sampled",
  bounds: "none: the ratio may be anything",
  weight: "none",
  mask: "none: every token of the policy’s counts",
  constraint: "none",
};

const IDLE_PARTS: ReadonlySet<string> = new Set(["ratio:one", "bounds:unbounded"]);

/** Reading order within a heading is that of the slots; headings in UNIPO's order. */
export function cardsOf(spec: AlgorithmSpec, of: Reading | null): HeadingCards[] {
  return (Object.entries(HEADINGS) as [Heading, string][]).map(([heading, title]) => ({
    heading,
    title,
    slots: (Object.keys(SLOTS) as Slot[]).filter((slot) => SLOTS[slot] === heading).map((slot) => slotCards(spec, slot, of)),
  }));
}

export function slotCards(spec: AlgorithmSpec, slot: Slot, of: Reading | null): SlotCards {
  const every = uses(spec.parts).filter((each) => each.slot === slot);
  const parts = every.map(({ path, use }, n) => partCard(spec, { slot, use, number: n }, path, of));
  const quiet = every.every(({ use }) => IDLE_PARTS.has(`${slot}:${use.part}`) || (slot === "constraint" && isOff(use)));
  const off = slot === "constraint" && every.length > 0 ? `off: ${every.map(({ use }) => partTitle(slot, use)).join(", ")} with coefficient 0` : IDLE[slot];
  return { slot, name: SLOT_NAMES[slot], question: QUESTIONS[slot], parts: quiet ? [] : parts, idle: quiet ? (off ?? "none") : "" };
}

function partTitle(slot: Slot, use: PartUse): string {
  return describePart(slot, use.part)?.title ?? use.part;
}

/** Everything to be said of one part at one token. */
function partCard(spec: AlgorithmSpec, place: Place, path: string, of: Reading | null): PartCard {
  const { slot, use } = place;
  const description = describePart(slot, use.part);
  const latex = formula(slot, use, description?.latex ?? "", of);
  const { value, signed: speaks } = outcome(place, of);
  const [written, rest] = sides(latex);
  const primes = primesOf(spec, slot, place.number);
  // A score is no ratio: where the gate says s = log ρ, it is that s.
  const isRho = slot === "ratio" && use.part !== "mean_log_prob" && RATIOS.includes(written.trim()) && gateTakesRho(spec);
  const left = isRho ? "\\rho " : primed(written, primes.defined);
  const right = primed(rest, primes.taken);
  const named = (terms: readonly Term[], times: number) => terms.map((each) => ({ ...each, symbol: primed(each.symbol, times) }));
  const definedTerms = left ? named(defined(place, of), primes.defined) : [];
  const takenTerms = named(taken(place, of, description), primes.taken);
  const terms = [...definedTerms, ...takenTerms];
  const l = annotate(left, definedTerms);
  const r = annotate(right, takenTerms);
  // Numbers of marks on the right go on from those on the left.
  const shifted = r.latex.replace(/\u2983(\d+)/g, (_, n: string) => `\u2983${Number(n) + definedTerms.length}`);
  const result = left || !latex ? null : resultOf(place, of, value, speaks);
  if (result) terms.push(...result.terms);
  const suffix = result ? result.latex(definedTerms.length + takenTerms.length) : "";
  const found = new Set([...l.found, ...[...r.found].map((n) => n + definedTerms.length)]);
  const settings = Object.entries(description?.parameters ?? {})
    .filter(([, { symbol }]) => !takenTerms.some((each, n) => each.symbol === symbol && r.found.has(n)))
    .map(([name, { meaning }]) => ({ name, value: settingText(parameters(slot, use)[name]), meaning }));
  return {
    slot,
    path,
    use,
    title: description?.title ?? use.part,
    latex: withResult(l.latex + shifted, suffix),
    terms: terms.map((each, n) => (found.has(n) || n >= definedTerms.length + takenTerms.length ? each : { ...each, symbol: "" })),
    outcome: Number.isNaN(value) ? "" : speaks ? shortSigned(value) : short(value),
    sentence: of ? sentence(place, of) : "",
    explanation: description?.explanation ?? "A part of this run’s own. The page has no code and no description for it; what it came to was stored with the run.",
    source: description?.source ?? "",
    scope: description?.scope ?? "",
    settings,
  };
}

/** ` = 2.718` behind a formula that defines no symbol of its own; of bounds, the range. */
function resultOf(place: Place, of: Reading | null, value: number, speaks: boolean): { terms: Term[]; latex: (n: number) => string } | null {
  const { slot } = place;
  if (slot === "bounds" && of?.result) {
    const end = (name: "low" | "high") => of.result?.[name][of.token] ?? NaN;
    if (Number.isNaN(end("low"))) return null;
    const words = (name: string) => ({ name, meaning: "Where the ratio is held.", from: "Computed here from the captured tokens by the algorithm’s parts." });
    const terms = [
      term("x", words("lower bound"), end("low"), { how: "instead" }),
      term("x", words("upper bound"), end("high"), { how: "instead" }),
    ];
    return { terms, latex: (n) => ` = [\\,${instead(n)},\\ ${instead(n + 1)}\\,]` };
  }
  const branched = slot === "gate" && place.use.part === "ppo_clip";
  if ((slot !== "gate" && slot !== "constraint") || branched || Number.isNaN(value)) return null;
  const words = slot === "gate"
    ? { name: "policy objective", meaning: "What the policy term adds to the objective, before the token’s weight in the loss.", from: "Computed here from the captured tokens by the algorithm’s parts." }
    : { name: "penalty", meaning: "What this constraint takes from the token’s objective, before the token’s weight in the loss.", from: "Computed here from the captured tokens by the algorithm’s parts." };
  return { terms: [term("x", words, value, { how: "instead", signed: speaks })], latex: (n) => ` = ${instead(n)}` };
}

/** What a formula comes to stands behind it, and not behind what is said of its symbols. */
function withResult(latex: string, suffix: string): string {
  const [formula = "", ...others] = suffix ? statements(latex) : [latex];
  return others.length ? [`${formula.replace(/,\s*$/, "")}${suffix},`, ...others].join("\\qquad ") : formula + suffix;
}

function instead(n: number): string {
  return `\\underset{\\text{\u2983${n}i\u2984}}{x}`;
}

function settingText(value: unknown): string {
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return short(value);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return String(value);
}
