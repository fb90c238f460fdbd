/** Beat 7: the step itself, what it did to the same token, and what came after. */
import { type Lesson, num, type Piece, prob, small, tokenText, whole } from "./pieces";
import { at, type Scene } from "./scene";

export function updateLesson(scene: Scene): Lesson {
  const { step, own } = scene;
  const title = "One small step, and again";
  if (step.update.kind === "eval") {
    return { title: "Nothing is changed", paragraphs: [["An evaluation changes no weight. Open an update of training to see what a step does."]], lines: [] };
  }
  const rate = own.get("learning_rate");
  const norm = own.get("grad_norm");
  const words: Piece[] = [
    "For each of the model's weights it is now worked out which way makes the loss smaller: the ", { word: "gradient" }, ". Each moves a little that way.",
  ];
  if (rate !== undefined) words.push(" How far is set by the ", { word: "learning rate" }, ", here ", small("learning_rate", rate), rate === 0 ? ": at 0, nothing moves yet." : ".");
  if (norm !== undefined) words.push(" The gradient's size, over all weights, was ", num("grad_norm", norm), ".");
  else words.push(" How large the gradient was the trainer did not log.");
  return { title, paragraphs: [words, afterPieces(scene), nextPieces(scene)].filter((p) => p.length), lines: [] };
}

/** The same token after the step, where a later update went over its response again. */
function afterPieces(scene: Scene): Piece[] {
  const { after, pass, token, step } = scene;
  const before = at(scene, "log_probs");
  if (!after || !pass?.tokens || Number.isNaN(before)) return [];
  const [was, is] = [Math.exp(before), Math.exp(after.logProb)];
  const next = after.update === step.update.update + 1;
  return [
    next ? "Right after it, at update " : "A little later, at update ", whole("after", after.update), ", the model was asked about the same response again: ",
    { token: tokenText(pass.tokens.strings[token] ?? "") }, " had gone from probability ", prob("p_now", was), " to ", prob("p_after", is), ".",
    " A token moves with all the others, so one alone may go another way than it was pushed.",
  ];
}

function nextPieces({ metrics, step }: Scene): Piece[] {
  const { update, rollouts } = step.update;
  const here = metrics.find((m) => m.update === update)?.values.get("reward");
  const later = metrics.filter((m) => m.update > update && !m.rollouts.some((r) => rollouts.includes(r)) && m.values.get("reward") !== undefined);
  const words: Piece[] = [];
  if (here !== undefined) words.push("The average reward of these responses was ", num("reward", here), ".");
  const [next] = later;
  const last = later.at(-1);
  if (!next) {
    words.push(" No new responses were sampled after it: this run ends here, or has not gone on yet.");
    return words;
  }
  words.push(" Then the model, a little changed, is asked again: at update ", whole("next", next.update), " it averaged ", num("next_reward", next.values.get("reward") ?? NaN), " on new responses");
  if (last && last !== next) words.push(", and at update ", whole("last", last.update), ", the last so far, ", num("last_reward", last.values.get("reward") ?? NaN));
  words.push(". One step says little; that is why there are many.");
  return words;
}
