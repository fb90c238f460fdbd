/** What the symbols of a part's formula stand for, with their numbers at a token. */
import { integer, number, short, shortSigned } from "../../format";
import { INPUTS, type ParameterDescription, type PartDescription, type PartUse, parameters, type Slot } from "../../objective";
import { branches, policySymbol } from "./formulas";
import { at, channel, counted, counts, gateValue, penaltyOf, type Reading, spread } from "./reading";
import type { Mark, Written } from "./latex";
import type { Stages } from "./stages";

/** A symbol of a formula: what it is, its number, where that comes from. */
export interface Term extends Mark {
  name: string;
  value: number | null;
  /** The number as it is shown, "" where there is none. */
  text: string;
  meaning: string;
  from: string;
  state?: "wins" | "loses" | "ties";
  /** Of values whose sign means more likely or less likely. */
  tone?: "more" | "less";
}

interface Words {
  name: string;
  meaning: string;
  from: string;
}

interface Shown {
  how?: Written;
  outer?: boolean;
  text?: string;
  signed?: boolean;
}

export function term(symbol: string, words: Words, value: number, shown: Shown = {}): Term {
  const { how = "under", outer = false } = shown;
  const text = Number.isNaN(value) ? "" : (shown.text ?? (shown.signed ? shortSigned(value) : short(value)));
  const tone = shown.signed && value ? (value > 0 ? "more" : "less") : undefined;
  return { symbol, how, outer, ...words, value: Number.isNaN(value) ? null : value, text, ...(tone && { tone }) };
}

const ENGINE = "Computed here from the captured tokens by the algorithm’s parts.";
const CAPTURED = "As the trainer computed it, captured.";
const ADVANTAGE = "How much better than expected: above 0 its tokens are candidates to be made more likely, below 0 less likely.";

/** Which of a list slot's parts this is, and what it was given. */
export interface Place {
  slot: Slot;
  use: PartUse;
  /** Which of the slot's parts, from 0. */
  number: number;
}

/** Terms on the left of the `=`: what the part defines. */
export function defined(place: Place, of: Reading | null): Term[] {
  const { slot } = place;
  if (slot === "reward") return ["R_i", "R_i'"].map((symbol) => term(symbol, { name: "reward", meaning: "The response’s reward as it is compared.", from: ENGINE }, rewardOf(of)));
  if (slot === "baseline" || slot === "scale" || slot === "modulation") {
    const words = { name: "advantage", meaning: ADVANTAGE, from: stageSource(place, of) };
    return ADVANTAGES.map((symbol) => term(symbol, words, stageValue(place, of), { signed: true }));
  }
  if (slot === "ratio") {
    const words = { name: "ratio", meaning: "How much more likely than when it was sampled, at the level the algorithm compares: 1 is unchanged.", from: ENGINE };
    const score = term("s_i", { name: "score", meaning: SCORE, from: ENGINE }, Math.log(at(of, "ratio")));
    return [...(place.use.part === "mean_log_prob" ? [score] : []), ...RATIOS.map((symbol) => term(symbol, words, at(of, "ratio")))];
  }
  if (slot === "weight") {
    const alone = of?.spec.parts.weight.length === 1;
    return [term("w_t", { name: "weight", meaning: "A factor on the policy term that no gradient flows through.", from: ENGINE }, alone ? at(of, "weight") : NaN)];
  }
  if (slot === "mask") {
    return ["m_t", "\\lambda_t"].map((symbol) =>
      term(symbol, { name: "mask", meaning: "What the policy term of the token is multiplied by: 0 leaves it out.", from: ENGINE }, at(of, "mask")),
    );
  }
  if (slot === "aggregation") {
    return [term("a", { name: "weight in the loss", meaning: "What the token’s objective is multiplied by before all are added up.", from: ENGINE }, at(of, "aggregation"))];
  }
  return [];
}

const ADVANTAGES = ["\\hat A_i'", "\\hat A_{i,t}'", "\\hat A_i", "\\hat A_{i,t}", "\\hat A_t", "\\hat A_{i,n}", "\\hat A_{i,s}"];
export const RATIOS: readonly string[] = ["\\rho", "r_t", "\\rho_s", "s_i", "\\rho_t", "W_i", "\\rho_i"];

/** Terms elsewhere in the formula: what the part takes. */
export function taken(place: Place, of: Reading | null, description: PartDescription | null): Term[] {
  const { slot, use } = place;
  const own = description ? hyperParameterTerms(slot, use, description.parameters ?? {}, of) : [];
  const all: Term[] = [...special(place, of), ...own, ...policies(slot, use, of), ...groupTerms(place, of), ...tokenTerms(place, of)];
  const seen = new Set<string>();
  return all.filter((each) => !seen.has(each.symbol) && seen.add(each.symbol));
}

/** Hyper-parameters by the symbol the registry gives them. */
function hyperParameterTerms(
  slot: Slot,
  use: PartUse,
  descriptions: Readonly<Record<string, ParameterDescription>>,
  of: Reading | null,
): Term[] {
  const values = parameters(slot, use);
  const terms = Object.entries(descriptions).flatMap(([name, { symbol, meaning }]) => {
    const value = values[name];
    if (!symbol || value === null || typeof value === "boolean" || name === "reference") return [];
    const from = `Hyper-parameter ${name} of the algorithm.`;
    if (typeof value === "number") return [term(symbol, { name, meaning, from }, value)];
    return [{ ...term(symbol, { name, meaning, from }, NaN), how: "bare" as const, text: String(value) }];
  });
  // A gate has one symbol for what differs by the sign of the advantage.
  const advantage = at(of, "advantages");
  if (slot === "gate" && !Number.isNaN(advantage)) {
    for (const [stem, symbol] of [["tau", "\\tau"], ["k", "k"], ["lambda", "\\lambda"]] as const) {
      const name = `${stem}_${advantage > 0 ? "positive" : "negative"}`;
      const found = descriptions[name];
      if (found) terms.push(term(symbol, { name, meaning: found.meaning, from: `Hyper-parameter ${name} of the algorithm.` }, Number(values[name])));
    }
  }
  return terms;
}

/** Branches, fractions of a share, logs of fractions: terms made of others. */
function special({ slot, use }: Place, of: Reading | null): Term[] {
  if (slot === "gate") {
    return branches(use, of).map((branch) => ({
      ...term(branch.latex, { name: `${branch.name} branch`, meaning: BRANCH[branch.name] ?? "", from: "Ratio, bounds and advantage of this token, multiplied." }, branch.value, { outer: true, signed: true }),
      state: branch.state,
    }));
  }
  if (slot === "constraint") {
    const values = parameters("constraint", use);
    const symbol = policySymbol(values.reference);
    const theirs = channel(of, String(values.reference ?? "ref_log_probs"));
    const difference = theirs - channel(of, "log_probs");
    const fraction = `\\frac{${symbol}}{\\pi_\\theta}`;
    const words = { name: "against the reference", meaning: "How much more likely the reference policy finds the token than the model does now; its logarithm is 0 where they agree.", from: CAPTURED };
    return [
      term(fraction, words, Math.exp(difference), { outer: true }),
      term(`\\log${fraction}`, { ...words, name: "log-ratio to the reference" }, difference, { outer: true }),
    ];
  }
  if (slot === "aggregation") return shares(of);
  return [];
}

const BRANCH: Readonly<Record<string, string>> = {
  unclipped: "Ratio times advantage. Its gradient moves the token in the direction of its advantage.",
  clipped: "The same with the ratio held inside its bounds. Where it is held it does not depend on the policy, so its gradient is 0.",
  "dual clip": "A floor for negative advantages: below it the token pushes no further.",
};

/** A share as the fractions it is made of, each read off the engine's own. */
function shares(of: Reading | null): Term[] {
  const share = at(of, "aggregation");
  const own = of ? counted(of) : NaN;
  const inGroup = of ? of.group.responses.reduce((sum, response) => sum + (response.trained ? response.counted : 0), 0) : NaN;
  const one = (symbol: string, name: string, meaning: string, divisor: number) => {
    const whole = Math.abs(divisor - Math.round(divisor)) <= 1e-6 * Math.abs(divisor) ? Math.round(divisor) : divisor;
    return term(symbol, { name, meaning, from: ENGINE }, share && Number.isFinite(divisor) ? 1 / divisor : NaN, { outer: false, text: `1/${Number.isInteger(whole) ? integer(whole) : short(whole)}` });
  };
  const rest = 1 / share;
  const responses = "One of the responses the loss is averaged over, those of all accumulated micro-batches together.";
  const length = "One of the tokens of this response that count.";
  const { aggregation } = of?.spec.parts ?? {};
  const constant = Number(aggregation && parameters("aggregation", aggregation).length) || (of?.constantLength ?? NaN);
  return [
    one("\\frac{1}{|y_i|}", "length", length, own),
    one("\\frac{1}{N}", "responses", responses, aggregation?.part === "sequence_mean_token_mean" ? rest / own : aggregation?.part === "sequence_mean_constant_length" ? rest / constant : rest),
    one("\\frac{1}{\\sum_j |y_j|}", "tokens", "One of all the tokens that count, of all accumulated micro-batches together.", rest),
    one("\\frac{1}{\\sum_{j\\in g} |y_j|}", "tokens of the group", "One of the tokens that count in this prompt’s responses.", inGroup),
    one("\\frac{1}{|\\mathcal G|}", "groups", "One of the prompts of the update.", rest / inGroup),
    one("\\frac{1}{L}", "constant length", "A constant in place of a length, so that long and short responses weigh the same per token.", aggregation?.part === "token_sum" ? rest : constant),
  ];
}

/** Probabilities and log-probs. */
function policies(slot: Slot, use: PartUse, of: Reading | null): Term[] {
  const reference = String(parameters(slot, use).reference ?? "");
  const old = slot === "ratio" && reference ? reference : "old_log_probs";
  const known: readonly (readonly [string, string])[] = [
    ["\\pi_\\theta", "log_probs"],
    ["\\pi_{\\mathrm{old}}", old],
    ["\\pi_{\\mathrm{ref}}", slot !== "ratio" && reference ? reference : "ref_log_probs"],
    ["\\pi_{\\mathrm{sampler}}", "rollout_log_probs"],
    ["\\pi_{\\mathrm{dpo}}", "dpo_log_probs"],
  ];
  return known.flatMap(([symbol, name]) => {
    const log = channel(of, name);
    const words = { name: "probability", meaning: INPUTS[name]?.meaning.replace("Log-probability", "Probability") ?? "", from: `${CAPTURED} Its logarithm is ${number(log)}.` };
    const logWords = { name: "log-probability", meaning: INPUTS[name]?.meaning ?? "", from: CAPTURED };
    const text = short(Math.exp(log));
    return [
      term(`${symbol}(y_t)`, words, Math.exp(log), { text }),
      term(symbol, words, Math.exp(log), { text }),
      term(`\\log${symbol}(y_t)`, logWords, log),
      term(`\\log${symbol}`, logWords, log),
    ];
  });
}

/** Statistics of the group's rewards, and the reward itself. */
function groupTerms(place: Place, of: Reading | null): Term[] {
  const ddof = place.slot === "scale" ? parameters("scale", place.use).ddof : 1;
  const rewards = of?.stages.reward;
  const { n, mean, std } = spread(rewards?.values() ?? [], typeof ddof === "number" ? ddof : 1);
  const from = "From the rewards of the group’s responses, as captured.";
  const reward = rewardOf(of);
  const others = (n * mean - reward) / (n - 1);
  return [
    term("R_i", { name: "reward", meaning: "What the reward functions gave the response, in all.", from: of?.spec.parts.reward.length && place.slot !== "reward" ? "Captured, then shaped by the algorithm." : "Captured." }, place.slot === "reward" ? (of?.response.reward ?? NaN) : reward),
    term("\\mu_g", { name: "group mean", meaning: "Mean reward of the responses to the same prompt.", from }, mean),
    term("\\frac{1}{G-1}\\sum_{j\\in g,\\,j\\neq i} R_j", { name: "mean of the others", meaning: "Mean reward of the other responses to the same prompt.", from }, others),
    term("\\frac{1}{G} \\sum_{j\\in g} R_j", { name: "group mean", meaning: "Mean reward of the responses to the same prompt.", from }, mean),
    term("\\sigma_g", { name: "group deviation", meaning: "How far the rewards of the group spread: their standard deviation.", from }, std),
    term("G", { name: "group size", meaning: "Responses to the same prompt.", from: "Captured." }, n || NaN),
  ];
}

/** What the token brings along. */
function tokenTerms(place: Place, of: Reading | null): Term[] {
  const { slot } = place;
  const gate = slot === "gate";
  const before = slot === "scale" || slot === "modulation" ? stageBefore(place, of) : at(of, "advantages");
  const advantage = { name: "advantage", meaning: ADVANTAGE, from: gate || slot === "constraint" || slot === "mask" || slot === "bounds" ? ENGINE : "From the step before." };
  const bound = (symbol: string, name: "low" | "high") =>
    term(symbol, { name: name === "low" ? "lower bound" : "upper bound", meaning: "Where the ratio is held.", from: ENGINE }, at(of, name), { how: "instead" });
  const ratio = { name: "ratio", meaning: "How much more likely than when it was sampled, at the level the algorithm compares: 1 is unchanged.", from: ENGINE };
  const entropy = { name: "entropy", meaning: INPUTS.entropies?.meaning ?? "", from: CAPTURED };
  return [
    ...ADVANTAGES.map((symbol) => term(symbol, advantage, before, { signed: true })),
    ...(gate ? [bound("\\rho_{\\min}", "low"), bound("\\rho_{\\max}", "high")] : []),
    term("\\rho", ratio, at(of, "ratio")),
    tokenRatio(place, of),
    responseTerm(place, of),
    term("|y_i|", { name: "length", meaning: "Tokens of the response that count.", from: "Captured." }, of ? counted(of) : NaN),
    term("m_t", { name: "mask so far", meaning: "1 where the token counts.", from: CAPTURED }, of ? Number(of.pass.tokens?.mask[of.token] ?? NaN) : NaN),
    term("H_t", entropy, channel(of, "entropies")),
    term("V_t", { name: "value", meaning: INPUTS.values?.meaning ?? "", from: CAPTURED }, channel(of, "values")),
    term("A^{\\mathrm{recorded}}_{i,t}", { name: "recorded advantage", meaning: INPUTS.advantages?.meaning ?? "", from: CAPTURED }, recordedAdvantage(of), { signed: true }),
  ];
}

const SCORE = "By which good and bad responses are told apart: above that of another response, this one is preferred.";

/** Log-probability now less that of the policy compared with, whatever the algorithm makes of it. */
function logRatios(place: Place, of: Reading): Float64Array {
  const reference = place.slot === "ratio" ? String(parameters("ratio", place.use).reference) : "old_log_probs";
  const { channels, n } = of.pass.tokens ?? { channels: new Map<string, ArrayLike<number>>(), n: 0 };
  const [now, then] = [channels.get("log_probs"), channels.get(reference)];
  return Float64Array.from({ length: n }, (_, t) => (now?.[t] ?? NaN) - (then?.[t] ?? NaN));
}

/** The ratio of this token alone, also under an algorithm that compares whole responses. */
function tokenRatio(place: Place, of: Reading | null): Term {
  const words = { name: "token ratio", meaning: "How much more likely this token alone is now than for the policy compared with: 1 is unchanged.", from: CAPTURED };
  return term("r_t", words, of ? Math.exp(logRatios(place, of)[of.token] ?? NaN) : NaN);
}

/** What one response comes to: its ratio in a ratio, its score in a gate that tells responses apart. */
function responseTerm(place: Place, of: Reading | null): Term {
  if (place.slot === "gate") {
    const isRatio = place.use.part === "discriminative" && parameters("gate", place.use).score === "ratio";
    return term("s_i", { name: "score", meaning: SCORE, from: ENGINE }, isRatio ? at(of, "ratio") : Math.log(at(of, "ratio")));
  }
  const words = { name: "response ratio", meaning: "How much more likely the response is now than for the policy compared with, by the geometric mean of its token ratios: 1 is unchanged.", from: ENGINE };
  // A mixture of both ratios is neither.
  return term("s_i", words, place.use.part === "hybrid" ? responseRatio(place, of) : at(of, "ratio"));
}

/** Geometric mean of the ratios of the tokens that count. */
function responseRatio(place: Place, of: Reading | null): number {
  if (!of || !counts(of)) return NaN;
  const mask = of.pass.tokens?.mask ?? [];
  const sum = logRatios(place, of).reduce((all, log, t) => (Number(mask[t]) > 0 ? all + log : all), 0);
  return Math.exp(sum / counted(of));
}

function recordedAdvantage(of: Reading | null): number {
  const own = channel(of, "advantages");
  return Number.isNaN(own) ? (of?.response.advantage ?? NaN) : own;
}

function rewardOf(of: Reading | null): number {
  return of?.stages.reward?.get(of.response.key) ?? NaN;
}

/** The advantage after this part. The last of them is what the engine used. */
export function stageValue(place: Place, of: Reading | null): number {
  if (!of) return NaN;
  return stageValues(place, of)[of.token] ?? NaN;
}

/** The same for every token of the response; none where it is not known. */
export function stageValues(place: Place, of: Reading): ArrayLike<number> {
  if (isLast(place, of)) return counts(of) ? (of.result?.advantages ?? []) : [];
  return stageOf(place, of.stages)?.get(of.response.key) ?? [];
}

/** What a part makes of the group by itself; nothing where that takes more than the group. */
export function stageOf({ slot, number: n }: Place, stages: Stages): Stages["baseline"] | undefined {
  return slot === "baseline" ? stages.baseline : slot === "scale" ? stages.scale[n] : stages.modulation[n];
}

/** The advantage before this part. */
function stageBefore({ slot, number: n }: Place, of: Reading | null): number {
  if (!of) return NaN;
  const { stages } = of;
  const before = slot === "modulation" ? (n ? stages.modulation[n - 1] : (stages.scale.at(-1) ?? stages.baseline)) : n ? stages.scale[n - 1] : stages.baseline;
  return before?.get(of.response.key)?.[of.token] ?? NaN;
}

/** Whether the advantage that comes out of this part is the one the token is pushed with. */
export function isLast({ slot, number: n }: Place, of: Reading): boolean {
  const { scale, modulation } = of.spec.parts;
  if (slot === "modulation") return n === modulation.length - 1;
  if (slot === "scale") return !modulation.length && n === scale.length - 1;
  return slot === "baseline" && !modulation.length && !scale.length;
}

function stageSource(place: Place, of: Reading | null): string {
  return of && isLast(place, of) ? "The advantage the loss was computed with." : ENGINE;
}

/** The number a part comes to at the token, and whether its sign speaks; NaN where it has none of its own. */
export function outcome(place: Place, of: Reading | null): { value: number; signed: boolean } {
  const { slot, use } = place;
  if (slot === "baseline" || slot === "scale" || slot === "modulation") return { value: stageValue(place, of), signed: true };
  if (slot === "ratio") return { value: use.part === "mean_log_prob" ? Math.log(at(of, "ratio")) : at(of, "ratio"), signed: false };
  if (slot === "gate") return { value: gateValue(of), signed: true };
  if (slot === "constraint") return { value: penaltyOf(of, use).penalty, signed: false };
  if (slot === "aggregation") return { value: at(of, "aggregation"), signed: false };
  if (slot === "mask") return { value: at(of, "mask"), signed: false };
  if (slot === "weight") return { value: at(of, "weight"), signed: false };
  return { value: NaN, signed: false };
}
