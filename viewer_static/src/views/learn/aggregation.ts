/** Beat 6: how the terms of all tokens become one number, by this run's own rule. */
import { describePart } from "../../objective";
import type { Analysis } from "../../analysis/types";
import type { AlgorithmSpec } from "../../objective/types";
import { amount, fine, type Lesson, type Line, type Piece, round, sentences, signed, small, tokenText } from "./pieces";
import type { Scene } from "./scene";

const TITLE = "Many tokens, one number";

/** Common rules in words that need none of the others; the rest is explained by the engine. */
const RULES: Readonly<Record<string, string>> = {
  token_mean: "This run takes the average over all tokens that count. Every token has the same say, so a long response has more of it than a short one.",
  sequence_mean_token_mean: "This run first takes the average inside each response, then the average of the responses. Every response has the same say, so a token in a long one counts for less.",
  sequence_mean_constant_length: "This run adds up the tokens of each response, divides by one fixed length, the same for all, and takes the average of the responses. A token counts the same wherever it stands.",
  sequence_mean_token_sum: "This run adds up the tokens of each response and takes the average of the responses. A long response has more say than a short one.",
  group_token_mean: "This run takes the average over the tokens of each question's responses, then the average of the questions. Every question has the same say.",
  token_sum: "This run adds up all tokens. The more there are, the larger the step.",
};

export function aggregationLesson(scene: Scene): Lesson {
  const { step, spec, analysis, result, pass, token } = scene;
  if (step.update.kind === "eval") {
    return { title: TITLE, paragraphs: [["In training, the terms of all tokens would now become one number, the ", { word: "loss" }, ". An evaluation has none: nothing is trained on it."]], lines: [] };
  }
  const intro: Piece[] = ["Each token adds a term, its ", { word: "token objective" }, ": larger is better. Training can only follow one number, so they are brought together. "];
  if (!spec || !analysis || analysis.missing) {
    const loss = trainersLoss(scene);
    const why = analysis?.missing || "the run does not say which algorithm it was trained with";
    const words: Piece[] = [`In what way cannot be shown: ${why}`, why.endsWith(".") ? "" : "."];
    return { title: TITLE, paragraphs: [intro, Number.isNaN(loss) ? words : [...words, " The trainer's own loss was ", small("trainer_loss", loss), "."]], lines: [] };
  }
  const { tokens, responses } = counted(scene);
  const lines: Line[] = [];
  const words: Piece[] = ["Here ", amount("tokens", tokens), tokens === 1 ? " token" : " tokens", " of ", amount("responses", responses), responses === 1 ? " response" : " responses", " count."];
  if (result && pass?.tokens && token >= 0) {
    const weight = result.aggregation[token] ?? 0;
    const objective = result.tokenObjective[token] ?? 0;
    const name: Piece = { token: tokenText(pass.tokens.strings[token] ?? "") };
    if (weight > 0) {
      words.push(" The term of ", name, " is divided by ", round("one_in", 1 / weight), " on the way: that is how much it weighs.");
      // A trainer may divide by what it counted over several updates.
      const odd = spec.parts.aggregation.part === "token_mean" && Math.abs(1 / weight - tokens) > 0.5;
      if (odd && analysis.whole) words.push(" That is not the number of tokens here: the trainer spreads its count over all updates on these responses.");
    } else words.push(" ", name, " does not count: its weight is ", amount("weight", 0), ".");
    lines.push({ label: "token objective × weight", sum: [signed("objective", objective), " × ", small("weight", weight), " = ", fine("term", objective * weight)] });
  }
  const loss = trainersLoss(scene);
  lines.push({ label: analysis.whole ? "all terms together" : "captured terms together", sum: [small("sum", -analysis.loss)] });
  lines.push({ label: "loss: the sign turned", sum: [small("loss", analysis.loss)] });
  return {
    title: TITLE,
    paragraphs: [
      [...intro, ruleOf(spec)],
      words,
      [
        "Trainers make a number smaller rather than larger, so the sign is turned. That is the ", { word: "loss" }, ": ", small("loss", analysis.loss), ".",
        ...(cancels(scene) ? [" It is next to nothing because terms above and below 0 cancel in the sum. The tokens are pushed all the same."] : []),
        ...(analysis.whole ? (Number.isNaN(loss) ? [] : [" The trainer itself had ", small("trainer_loss", loss), "."]) : [" Not all of the update was captured, so this is the captured part."]),
        ...(disagrees(analysis) ? [" These do not agree: the formula shown is not all that the trainer did. Read the numbers above with care."] : []),
      ],
    ],
    lines,
  };
}

function ruleOf(spec: AlgorithmSpec): string {
  const use = spec.parts.aggregation;
  return RULES[use.part] ?? sentences(describePart("aggregation", use.part)?.explanation ?? "");
}

/** Whether a forward pass's loss is further from the trainer's than rounding explains. */
function disagrees({ microBatches }: Analysis): boolean {
  return microBatches.some(({ gap, tolerance }) => gap !== null && !(Math.abs(gap) <= tolerance));
}

/** Whether the loss is small only because large terms of both signs cancel, as at the first update after sampling. */
function cancels({ analysis }: Scene): boolean {
  const magnitude = analysis?.microBatches.reduce((sum, batch) => sum + batch.evaluation.magnitude, 0) ?? 0;
  return magnitude > 0 && Math.abs(analysis?.loss ?? 0) < magnitude / 100;
}

/** The trainer's loss of the update, the mean over its data-parallel ranks; NaN where a forward pass of theirs did not tell. */
function trainersLoss({ step }: Scene): number {
  const ranks = new Set<string>();
  let sum = 0;
  for (const part of step.update.parts) {
    for (const batch of part.micro_batches) {
      ranks.add(`${part.rank}.${batch.data_parallel_rank ?? 0}`);
      sum += batch.loss ?? NaN;
    }
  }
  const size = step.update.parts[0]?.data_parallel_size ?? 0;
  return size > 0 && ranks.size === size ? sum / size : NaN;
}

/** Tokens and responses that have a weight in the loss. */
function counted({ analysis, step }: Scene): { tokens: number; responses: number } {
  let [tokens, responses] = [0, 0];
  for (const group of step.groups) {
    for (const pass of group.passes) {
      const weight = analysis?.passes.get(pass.key)?.aggregation;
      let own = 0;
      for (let i = 0; i < (pass.tokens?.n ?? 0); i++) if (weight?.[i]) own++;
      tokens += own;
      if (own) responses++;
    }
  }
  return { tokens, responses };
}
