/** What a part does to one token, in plain words. */
import { MEAN_ROUNDING } from "../../analysis";
import { MASK_REASONS } from "../../channels";
import { change, integer, short, shortSigned } from "../../format";
import { CLIPPED, describePart, type PartUse, parameters, silences, type Slot } from "../../objective";
import { branches } from "./formulas";
import { at, channel, counted, counts, penaltyOf, type Reading } from "./reading";
import { isLast, type Place, stageOf, stageValue, stageValues } from "./symbols";

/** One or two sentences; "" where there is nothing to add to the formula. */
export function sentence(place: Place, of: Reading): string {
  if (!of.result && place.slot !== "baseline" && place.slot !== "scale" && place.slot !== "reward") return "";
  const write: Partial<Record<Slot, (place: Place, of: Reading) => string>> = {
    filter: filterSentence,
    baseline: advantageSentence,
    scale: advantageSentence,
    modulation: advantageSentence,
    ratio: ratioSentence,
    bounds: boundsSentence,
    gate: (place, of) => gateSentence(place.use, of),
    weight: weightSentence,
    mask: (_, of) => maskSentence(of),
    constraint: (place, of) => constraintSentence(place.use, of),
    aggregation: aggregationSentence,
  };
  return write[place.slot]?.(place, of) ?? "";
}

function filterSentence(_place: Place, of: Reading): string {
  if (!counts(of)) return "";
  return at(of, "aggregation") === 0 ? "This response takes no part." : "This response takes part.";
}

function advantageSentence(place: Place, of: Reading): string {
  const value = stageValue(place, of);
  if (place.slot === "baseline" && !Number.isFinite(of.response.reward) && !(Math.abs(value) > 0)) {
    return `This response has no ${Number.isNaN(of.response.reward) ? "" : "finite "}reward, so there is nothing to compare.`;
  }
  if (place.slot === "baseline" && of.group.responses.length === 1 && describePart("baseline", place.use.part)?.scope === "group") {
    return ["A single response: nothing to compare with.", isLast(place, of) ? disagreement(place, of, value) : ""].join(" ").trim();
  }
  if (place.slot === "baseline" && of.group.flat && Math.abs(value) < MEAN_ROUNDING) {
    return "Every sibling scored the same, so there is nothing to learn from this group.";
  }
  if (Number.isNaN(value)) return isLast(place, of) || !of.result || !counts(of) ? "" : "This step cannot be shown alone: it was computed over more than this group.";
  const ofToken = differsByToken(stageValues(place, of), of);
  const better = value > 0;
  if (!isLast(place, of)) {
    if (place.slot !== "baseline") return "";
    if (ofToken) return value === 0 ? "From this token on it went exactly as expected." : `From this token on it went ${short(Math.abs(value))} ${better ? "better" : "worse"} than expected.`;
    if (value === 0) return "This response scored exactly what was expected.";
    return `This response scored ${short(Math.abs(value))} ${better ? "above" : "below"} what it is compared with.`;
  }
  const off = disagreement(place, of, value);
  if (off) return off;
  if (value === 0) return ofToken ? "Exactly as good as expected: nothing pulls this token either way." : "Exactly as good as expected: nothing pulls its tokens either way.";
  if (ofToken) return `From this token on it went ${better ? "better" : "worse"} than expected, so the token is a candidate to be made ${better ? "more" : "less"} likely.`;
  return `This response did ${better ? "better" : "worse"} than expected, so each of its tokens is a candidate to be made ${better ? "more" : "less"} likely.`;
}

/** Whether the counted tokens of the response have different values: a critic's, and not one of the response. */
function differsByToken(values: ArrayLike<number>, of: Reading): boolean {
  const mask = of.pass.tokens?.mask ?? [];
  const own = values[of.token] ?? NaN;
  for (let t = 0; t < values.length; t++) {
    if (Number(mask[t]) > 0 && Math.abs((values[t] ?? NaN) - own) > MEAN_ROUNDING * Math.max(1, Math.abs(own))) return true;
  }
  return false;
}

/** Where the advantage used is not what the formula gives for this group: the trainer's own was taken. */
function disagreement(place: Place, of: Reading, value: number): string {
  const here = stageOf(place, of.stages)?.get(of.response.key)?.[of.token] ?? NaN;
  if (Number.isNaN(here) || Math.abs(here - value) <= 1e-4 * Math.max(1, Math.abs(here))) return "";
  return `The advantage that was recorded and used is ${shortSigned(value)}; the formula gives ${shortSigned(here)} for this group.`;
}

function ratioSentence(place: Place, of: Reading): string {
  const ratio = at(of, "ratio");
  if (place.use.part === "one") return "The algorithm does not compare with the policy that sampled.";
  if (!counts(of)) return "The token does not count, so its ratio is not used.";
  if (place.use.part === "token") return change(Math.log(ratio));
  if (place.use.part === "mean_log_prob") return `The response is compared with no other policy: a counted token of it has a log-probability of ${short(Math.log(ratio))} on average.`;
  if (place.use.part === "hybrid") return `The ratio is ${short(ratio)}: that of the token and that of its response, mixed.`;
  return `All of the ${place.use.part === "segment" ? "segment" : "response"} is compared at once: ${change(Math.log(ratio)).toLowerCase().replace(" it was ", " they were ")}`;
}

function boundsSentence(_place: Place, of: Reading): string {
  const [ratio, low, high] = [at(of, "ratio"), at(of, "low"), at(of, "high")];
  if (Number.isNaN(ratio) || (!Number.isFinite(low) && !Number.isFinite(high))) return "";
  const range = `${short(low)} to ${short(high)}`;
  if (ratio < low) return `The ratio ${short(ratio)} is below the range ${range}.`;
  if (ratio > high) return `The ratio ${short(ratio)} is above the range ${range}.`;
  return `The ratio ${short(ratio)} is inside the range ${range}.`;
}

function gateSentence(use: PartUse, of: Reading): string {
  if (!counts(of)) return "The token does not count, so there is nothing to gate.";
  const code = at(of, "clipped");
  if (at(of, "advantages") === 0) return "The advantage is 0, so the policy term is 0 whatever the ratio.";
  const winner = branches(use, of).find((branch) => branch.state === "wins");
  if (code === 1 || code === 2) {
    return winner
      ? "The clipped branch wins the min. It does not depend on the policy, so its gradient is 0."
      : `The ratio is ${CLIPPED[code]} already, so the policy term pushes no further.`;
  }
  if (code === 3) return "The dual clip wins. It does not depend on the policy, so its gradient is 0.";
  if (code === 4) return "The ratio is beyond the cap δ, so the policy term does not push.";
  if (code === 5) return "The token is outside the trust region, so the policy term does not push.";
  if (code === 6 || code === 7) return `The ratio is ${code === 6 ? "held up to its lower" : "held down to its upper"} bound, and the token still pushes.`;
  if (winner) return `The ${winner.name} branch wins, so the push passes.`;
  return branches(use, of).length ? "Both branches are equal: the ratio is inside its range, and the push passes." : "Nothing silences this token.";
}

function weightSentence(_place: Place, of: Reading): string {
  if (!counts(of)) return "";
  const weight = at(of, "weight");
  return weight === 1 ? "The token weighs as much as any." : `The token’s push is multiplied by ${short(weight)}.`;
}

/** Why the token counts or does not. */
export function maskSentence(of: Reading): string {
  const reason = Number(of.pass.tokens?.reason?.[of.token] ?? 0);
  if (!counts(of)) return `Not counted: ${MASK_REASONS[reason] ?? "left out by the trainer"}.`;
  if (of.result && at(of, "mask") === 0) return "The algorithm’s mask leaves the policy term of this token out.";
  return "The policy wrote it, and it counts.";
}

function constraintSentence(use: PartUse, of: Reading): string {
  const { penalty, weight } = penaltyOf(of, use);
  if (!counts(of)) return "The token does not count, so nothing pulls at it.";
  if (Number.isNaN(penalty)) return "This term is over the whole vocabulary: no token that was sampled answers for it.";
  if (penalty === 0 && weight === 0) return "The token has not moved from the reference, so nothing pulls it back.";
  const drift = channel(of, "log_probs") - channel(of, String(parameters("constraint", use).reference ?? "ref_log_probs"));
  const where = Number.isNaN(drift) ? "" : `The model gives the token ${drift > 0 ? "more" : "less"} probability than the reference. `;
  return `${where}The pull on it is ${weight > 0 ? "down" : weight < 0 ? "up" : "nothing"}${weight ? `, by ${short(Math.abs(weight), 3)}` : ""}.`;
}

function aggregationSentence(_place: Place, of: Reading): string {
  const share = at(of, "aggregation");
  if (!share) return "The token has no share in the loss.";
  const part = of.spec.parts.aggregation.part;
  const own = `${integer(counted(of))} tokens of this response count`;
  const weighs = `It weighs ${fraction(share)} in the loss`;
  if (part === "sequence_mean_constant_length") return `${weighs}: not its own response’s length divides it but the constant L, so long responses weigh more. ${own}.`;
  if (part === "sequence_mean_token_mean") return `${weighs}: each response weighs the same, and its counted tokens share that. ${own}.`;
  if (part === "token_mean") return `${weighs}, as every counted token does: long responses weigh more. ${own}.`;
  return `${weighs}. ${own}.`;
}

/** A weight in words: `1/1 536` where it is the inverse of a whole number. */
function fraction(weight: number): string {
  const inverse = Math.round(1 / weight);
  return inverse > 1 && Math.abs(1 / weight - inverse) <= 1e-6 * inverse ? `1/${integer(inverse)}` : short(weight);
}

/** `already 23 % more likely than when sampled, so `: why it is clipped, by what its algorithm compares. */
function becauseMoved(of: Reading): string {
  if (describePart("ratio", of.spec.parts.ratio.part)?.scope === "token") {
    const log = channel(of, "log_probs") - channel(of, "old_log_probs");
    const words = change(log);
    return words.includes("likely") && log !== 0 ? `already ${words.replace(/ now (than|as) when it was sampled\.$/, " $1 when sampled")}, so ` : "";
  }
  const [ratio, low, high] = [at(of, "ratio"), at(of, "low"), at(of, "high")];
  const side = ratio > high ? "above" : ratio < low ? "below" : "";
  return side && `the ratio of its ${of.spec.parts.ratio.part === "segment" ? "segment" : "whole response"}, ${finer(ratio, side === "above" ? high : low)}, is ${side} the range, so `;
}

/** A ratio in as many digits as tell it from the bound it has passed. */
function finer(ratio: number, bound: number): string {
  for (let digits = 4; digits < 9; digits++) {
    if (ratio.toPrecision(digits) !== bound.toPrecision(digits)) return ratio.toPrecision(digits);
  }
  return short(ratio);
}

/** The verdict on a token: the first thing to read about it. */
export function verdict(of: Reading): string {
  if (!counts(of)) return maskSentence(of);
  if (!of.result) return "The algorithm cannot be computed for it.";
  const push = at(of, "push");
  const code = at(of, "clipped");
  const nothing = of.group.flat && Math.abs(at(of, "advantages")) < MEAN_ROUNDING;
  if (silences(code)) {
    const rest = push === 0 ? "pushes no further" : `pushes no further; the constraint pulls it ${push > 0 ? "up" : "down"}`;
    return `Clipped: ${becauseMoved(of)}the policy term ${rest}.`;
  }
  if (nothing && push === 0) return "Every sibling scored the same, so nothing is learned from it.";
  if (push === 0) return "Not pushed.";
  if (at(of, "policyWeight") === 0) {
    return `${nothing ? "Every sibling scored the same, so only" : "Only"} the constraint pulls at it, ${push > 0 ? "up: made more likely" : "down: made less likely"}.`;
  }
  const hardest = rank(of);
  if (of.evaluation) return `An evaluation trains nothing; an update on it would push the token ${push > 0 ? "up: more likely" : "down: less likely"}${hardest}.`;
  return `Pushed ${push > 0 ? "up: made more likely" : "down: made less likely"}${hardest}.`;
}

/** `, hardest of the 32 pushed tokens of this response` where it is. */
function rank(of: Reading): string {
  const pushes = of.result?.push ?? new Float64Array();
  const own = Math.abs(pushes[of.token] ?? 0);
  let [above, n, equal] = [0, 0, 0];
  for (const push of pushes) {
    if (push !== 0) n++;
    if (Math.abs(push) > own * (1 + 1e-9)) above++;
    else if (Math.abs(push) >= own * (1 - 1e-9)) equal++;
  }
  return above === 0 && equal === 1 && n > 1 ? `, hardest of the ${n} pushed tokens of this response` : "";
}
