/** Beat 5: what the update does with one token: how likely it was and is, whether it is clipped, which way it is pushed. */
import { CLIPPED } from "../../objective/types";
import { describePart } from "../../objective";
import { fine, type Lesson, type Line, num, type Piece, prob, sentences, signed, tokenText, whole } from "./pieces";
import { advantageOf, at, nth, type Scene } from "./scene";

const TITLE = "Each token gets a push";

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
    paragraphs: [["Every token of a response takes over its advantage. Take ", ...which, ". ", ...moved.words], gatePieces(scene), pushPieces(scene)].filter((p) => p.length),
    lines: [...moved.lines, ...(result ? gateLines(scene) : [])],
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
  const words: Piece[] =
    now === then
      ? ["The model gave it probability ", prob("p_then", Math.exp(then)), step.update.first ? ". This is the first update after sampling, so nothing has moved yet: the " : ". That has not changed since: the ", { word: "ratio" }, " is exactly ", whole("ratio", 1), "."]
      : ["When it was sampled the model gave it probability ", prob("p_then", Math.exp(then)), "; earlier updates on these responses have moved that to ", prob("p_now", Math.exp(now)), ". The second divided by the first is called the ", { word: "ratio" }, "."];
  if (now !== then && step.update.first) {
    words.splice(2, 1, "; computed anew for this update it is ");
  }
  const lines: Line[] = now === then ? [] : [{ label: "now ÷ then", sum: [prob("p_now", Math.exp(now)), " ÷ ", prob("p_then", Math.exp(then)), " = ", num("ratio", own)] }];
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
    if (code >= 1 && code <= 5) words.push(`This one has (${CLIPPED[code] ?? ""}), so its advantage pushes it no further.`);
    else if (code) words.push(`This one is ${CLIPPED[code] ?? ""}.`);
    else words.push("This one is not held back.");
  } else {
    const explained = describePart("gate", part)?.explanation;
    if (explained) words.push(sentences(explained, 2));
  }
  let [clipped, counted] = [0, 0];
  for (const pass of group.passes) {
    const each = analysis?.passes.get(pass.key);
    if (!each || !pass.tokens) continue;
    for (let i = 0; i < pass.tokens.n; i++) {
      if (!each.aggregation[i]) continue;
      counted++;
      const its = each.clipped[i] ?? 0;
      if (its >= 1 && its <= 5) clipped++;
    }
  }
  if (counted) words.push(" In this group ", whole("clipped", clipped), " of ", whole("counted", counted), clipped === 1 ? " tokens is held back." : " tokens are held back.");
  return words;
}

function range(low: number, high: number): Piece[] {
  if (!Number.isFinite(low) || low === 0) return ["up to ", num("high", high)];
  if (!Number.isFinite(high)) return ["from ", num("low", low)];
  return [num("low", low), " to ", num("high", high)];
}

function gateLines(scene: Scene): Line[] {
  const { result, token } = scene;
  if (!result) return [];
  const push = result.push[token] ?? NaN;
  const advantage = advantageOf(scene);
  const lines: Line[] = [{ label: "advantage", sum: [signed("advantage", advantage)] }];
  for (const { use, weight } of result.penalties) {
    const pull = -(weight[token] ?? 0);
    if (pull !== 0) lines.push({ label: use.part === "kl" ? "pull to the reference" : use.part.replaceAll("_", " "), sum: [fine("pull", pull)] });
  }
  lines.push({ label: "push", sum: [fine("push", push)] });
  return lines;
}

/** Which way and how hard, and how that compares. */
function pushPieces(scene: Scene): Piece[] {
  const { result, token, group, analysis, spec } = scene;
  if (!result) {
    const why = analysis?.missing || (spec ? "" : "the run does not say which algorithm it was trained with");
    return [`How hard it is pushed cannot be said${why ? `: ${why}` : "."}`];
  }
  const push = result.push[token] ?? NaN;
  const words: Piece[] = ["This update's ", { word: "push" }, " on it is ", fine("push", push), ": "];
  words.push(push > 0 ? "it is made more likely." : push < 0 ? "it is made less likely." : "it is left alone.");
  let [harder, all] = [0, 0];
  for (const pass of group.passes) {
    const each = analysis?.passes.get(pass.key);
    if (!each || !pass.tokens) continue;
    for (let i = 0; i < pass.tokens.n; i++) {
      if (!each.aggregation[i]) continue;
      all++;
      if (Math.abs(each.push[i] ?? 0) > Math.abs(push)) harder++;
    }
  }
  if (push !== 0 && all > 1) {
    words.push(...(harder ? [" Of ", whole("tokens", all), " tokens in this group, ", whole("harder", harder), harder === 1 ? " is pushed harder." : " are pushed harder."] : [" No token in this group is pushed harder."]));
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
