/** Beat 5: what the update does with one token: how likely it was and is, whether it is clipped, which way it is pushed. */
import { CLIPPED, describePart, silences } from "../../objective";
import type { Analysis, PassResult } from "../../analysis/types";
import type { StepGroup } from "../../bundle/step";
import { amount, fine, type Lesson, type Line, num, type Piece, prob, round, sentences, setting, signed, tokenText, whole } from "./pieces";
import { at, nth, type Scene, trainedWith } from "./scene";

const TITLE = "Each token gets a push";

/** A ratio this near 1 is read as unchanged: probabilities with three decimals are the same. */
const UNCHANGED = 5e-4;

export function tokenLesson(scene: Scene): Lesson {
  const { group, pass, token, result, step } = scene;
  if (!pass?.tokens) {
    return { title: TITLE, paragraphs: [["The tokens of this group were not captured. With them this beat would show how likely one was, and how training moves it."]], lines: [] };
  }
  const text = pass.tokens.strings[token] ?? "";
  const which: Piece[] = [
    { token: tokenText(text) }, ", token ", whole("token", token + 1), " of response ", whole("response", nth(group, pass.response)),
  ];
  if (!pass.measured) {
    const why = step.update.kind === "eval" ? "This is an evaluation: its tokens are not pushed." : "This response is not part of the open update, so its tokens are not pushed by it.";
    const p = Math.exp(firstKnown(at(scene, "old_log_probs"), at(scene, "rollout_log_probs")));
    const then: Piece[] = Number.isNaN(p) ? [] : [" It was sampled with probability ", prob("p_then", p), "."];
    return { title: TITLE, paragraphs: [["Take ", ...which, ".", ...then, ` ${why}`]], lines: [] };
  }
  if (!pass.tokens.mask[token]) {
    return { title: TITLE, paragraphs: [["Take ", ...which, ". It does not count: the model did not write it, or its response was left out. It is ", { word: "mask", as: "masked" }, " and gets no push."]], lines: [] };
  }
  const moved = movedPieces(scene);
  return {
    title: TITLE,
    paragraphs: [["Take ", ...which, ". ", ...moved.words], gatePieces(scene), pushPieces(scene)].filter((p) => p.length),
    lines: [...moved.lines, ...(result ? pushLines(scene) : [])],
  };
}

function firstKnown(...values: number[]): number {
  return values.find((value) => !Number.isNaN(value)) ?? NaN;
}

/** How likely the token was and is, and the ratio of the two. */
function movedPieces(scene: Scene): { words: Piece[]; lines: Line[] } {
  const { result, token, spec, step } = scene;
  const then = at(scene, "old_log_probs");
  const now = at(scene, "log_probs");
  if (Number.isNaN(now)) return { words: ["How likely it is was not captured."], lines: [] };
  const kind = spec?.parts.ratio.part ?? "token";
  if (Number.isNaN(then)) {
    return { words: ["The model gives it probability ", prob("p_now", Math.exp(now)), " now. What it was when the token was sampled was not captured."], lines: [] };
  }
  const own = Math.exp(now - then);
  const still = Math.abs(own - 1) < UNCHANGED;
  const words: Piece[] =
    now === then
      ? ["The model gave it probability ", prob("p_then", Math.exp(then)), step.update.first ? ". This is the first update after sampling, so nothing has moved yet: the " : ". That has not changed since: the ", { word: "ratio" }, " is exactly ", whole("ratio", 1), "."]
      : ["When it was sampled the model gave it probability ", prob("p_then", Math.exp(then)), "; earlier updates on these responses have ", ...(still ? ["as good as left it there"] : ["moved that to ", prob("p_now", Math.exp(now))]), ". What it is now, divided by what it was, is called the ", { word: "ratio" }, "."];
  if (now !== then && !still && step.update.first) {
    words.splice(2, 2, "; computed anew for this update it is ");
  }
  const lines: Line[] = still ? [] : [{ label: "now ÷ then", sum: [prob("p_now", Math.exp(now)), " ÷ ", prob("p_then", Math.exp(then)), " = ", num("ratio", own)] }];
  const used = result?.ratio[token];
  if (kind === "one") words.push(" This run's algorithm makes no use of it.");
  else if (kind !== "token" && used !== undefined) {
    words.push(` ${sentences(describePart("ratio", kind)?.explanation ?? "", 1)} Here that is `, num("used_ratio", used), ".");
  }
  return { words, lines };
}

/** Whether the token has gone too far already, by this run's own rule. */
function gatePieces(scene: Scene): Piece[] {
  const { result, token, spec, group, analysis } = scene;
  if (!result || !spec) return [];
  const { part } = spec.parts.gate;
  const [low, high] = [result.low[token] ?? NaN, result.high[token] ?? NaN];
  const code = result.clipped[token] ?? 0;
  const words: Piece[] = [];
  if (Number.isFinite(low) || Number.isFinite(high)) {
    words.push(
      part === "ppo_clip" ? "So that one update cannot go too far, a token is pushed no further that way once its ratio has left "
        : "So that one update cannot go too far, the ratio counts only within the range ",
      ...range(low, high), ", the ", { word: "clip", as: "clip range" }, ". ",
    );
    if (silences(code)) words.push(`This one has (${CLIPPED[code] ?? ""}), so its advantage pushes it no further.`);
    else if (code) words.push(`This one is ${CLIPPED[code] ?? ""}.`);
    else words.push("This one is not held back.");
  } else {
    const explained = describePart("gate", part)?.explanation;
    if (explained) words.push(sentences(explained, 2));
  }
  let [clipped, counted] = [0, 0];
  for (const [each, i] of counting(group, analysis)) {
    counted++;
    if (silences(each.clipped[i] ?? 0)) clipped++;
  }
  if (counted) words.push(" In this group ", amount("clipped", clipped), " of ", amount("counted", counted), clipped === 1 ? " tokens is held back." : " tokens are held back.");
  return words;
}

/** The tokens of a group that have a share of the loss: what is made of their pass, and where they are in it. */
function* counting(group: StepGroup, analysis: Analysis | null): Generator<readonly [PassResult, number]> {
  for (const pass of group.passes) {
    const result = analysis?.passes.get(pass.key);
    for (let i = 0; result && i < (pass.tokens?.n ?? 0); i++) if (result.aggregation[i]) yield [result, i];
  }
}

function range(low: number, high: number): Piece[] {
  if (!Number.isFinite(low) || low === 0) return ["up to ", setting("high", high)];
  if (!Number.isFinite(high)) return ["from ", setting("low", low)];
  return [setting("low", low), " to ", setting("high", high)];
}

/** How the push comes about: what the policy term gives, and what constraints pull. They add up to it. */
function pushLines(scene: Scene): Line[] {
  const { result, token } = scene;
  if (!result) return [];
  const push = result.push[token] ?? NaN;
  const pulls: Line[] = [];
  for (const { use, weight } of result.penalties) {
    const pull = -(weight[token] ?? 0);
    if (pull !== 0) pulls.push({ label: use.part === "kl" ? "and the pull of the rubber band" : `and from ${use.part.replaceAll("_", " ")}`, sum: [fine("pull", pull)] });
  }
  const policy = push + (result.constraintWeight[token] ?? 0);
  const [ratio, advantage, weight] = [result.ratio[token] ?? NaN, trainedWith(scene), result.aggregation[token] ?? 0];
  const product = ratio * advantage * weight;
  const what = pulls.length ? "policy" : "push";
  const total: Line[] = pulls.length ? [...pulls, { label: "together, the push", sum: [fine("push", push)] }] : [];
  // Only where it is that simple: some algorithms weigh the token by more, and a clipped one is not pushed.
  if (policy === 0 || !(Math.abs(product - policy) <= 1e-3 * Math.abs(policy))) {
    return [{ label: "advantage", sum: [signed("advantage", advantage)] }, ...(pulls.length ? [{ label: "what it pushes", sum: [fine(what, policy)] }] : []), ...(total.length ? total : [{ label: "push", sum: [fine("push", push)] }])];
  }
  const sum: Piece[] = [num("used_ratio", ratio), " × ", signed("advantage", advantage), " ÷ ", round("one_in", 1 / weight), " = ", fine(what, policy)];
  return [{ label: "ratio × advantage, weighed as in beat 6", sum }, ...total];
}

/** Which way and how hard, and how that compares. */
function pushPieces(scene: Scene): Piece[] {
  const { result, token, group, analysis, spec } = scene;
  if (!result) {
    const why = analysis?.missing || (spec ? "" : "the run does not say which algorithm it was trained with");
    return [`How hard it is pushed cannot be said${why ? `: ${why}` : "."}`];
  }
  const push = result.push[token] ?? NaN;
  const advantage = trainedWith(scene);
  const objective = result.tokenObjective[token] ?? NaN;
  const words: Piece[] = ["What it adds to what training makes larger, its ", { word: "token objective" }, ", is ", signed("objective", objective), ". "];
  words.push("How much that grows as the token gets likelier is its ", { word: "push" }, ", ", fine("push", push), ": ");
  if (push) words.push(push > 0 ? "it is made more likely." : "it is made less likely.");
  else if (group.flat && advantage === 0) words.push("it is left alone, because every response scored the same.");
  else words.push(advantage === 0 ? "it is left alone, because its advantage is 0." : "it is left alone.");
  let [harder, all] = [0, 0];
  for (const [each, i] of counting(group, analysis)) {
    all++;
    if (Math.abs(each.push[i] ?? 0) > Math.abs(push)) harder++;
  }
  if (push !== 0 && all > 1) {
    words.push(...(harder ? [" Of ", amount("tokens", all), " tokens in this group, ", amount("harder", harder), harder === 1 ? " is pushed harder." : " are pushed harder."] : [" No token in this group is pushed harder."]));
  }
  words.push(...springPieces(scene));
  return words;
}

/** What holds the model near where it began, where the run has that. */
function springPieces({ spec, result, token, manifest }: Scene): Piece[] {
  const used = spec?.parts.constraint ?? [];
  if (!used.some((use) => use.part === "kl")) {
    return manifest.channels.includes("ref_log_probs") || !spec ? [] : [" Nothing holds this run near the model it began with: it has no reference model."];
  }
  const pull = -(result?.constraintWeight[token] ?? 0);
  if (pull === 0) return [" A rubber band holds the model near the one it began with; on this token it is slack."];
  return [" Part of it, ", fine("pull", pull), ", is a rubber band that holds the model near the one it began with."];
}
