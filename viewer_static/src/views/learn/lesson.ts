/**
 * The walk through one update, in plain words. Every number is one of the bundle's or follows from it: a lesson is a
 * function of what is opened, and says so where something is not there.
 */
import { oneLine, promptTitle } from "../../text";
import { advantageLesson } from "./advantage";
import { aggregationLesson } from "./aggregation";
import { amount, type Lesson, listed, many, num, type Piece, said, whole } from "./pieces";
import { nth, type Scene } from "./scene";
import { tokenLesson } from "./token";
import { updateLesson } from "./update";

const LESSONS: readonly ((scene: Scene) => Lesson)[] = [
  promptLesson, responseLesson, rewardLesson, advantageLesson, tokenLesson, aggregationLesson, updateLesson,
];

/** The text of a beat, from 1. */
export function lesson(beat: number, scene: Scene): Lesson {
  return (LESSONS[beat - 1] ?? promptLesson)(scene);
}

/** Where no tokens are there to speak of. */
export function emptyLesson(why: string): Lesson {
  return {
    title: "Nothing to walk through here",
    paragraphs: [[why], ["Choose another update: those with a diamond on the chart were captured with their tokens."]],
    lines: [],
  };
}

function promptLesson({ step, group }: Scene): Lesson {
  const { update } = step;
  const evaluation = update.kind === "eval";
  const inside = step.groups.filter((g) => g.inUpdate > 0);
  const groups = inside.length || step.groups.length;
  const kept = (inside.length ? inside : step.groups).filter((g) => g.kept).length;
  const rollouts = update.rollouts.map((each) => [whole("rollout", each)]);
  const start: Piece[] = evaluation
    ? ["Evaluation ", whole("update", update.update), " asks the model ", ...many("groups", groups, "question"), ". It only measures: nothing is trained on the answers."]
    : ["Update ", whole("update", update.update), " learns from ", ...many("groups", groups, "question"), ", called ", { word: "prompt group", as: "prompts" },
       ", of ", { word: "rollout" }, " ", ...listed(rollouts), "."];
  const some: Piece[] = kept < groups ? [" The tokens of ", amount("kept", kept), " of them were captured."] : [];
  return {
    title: groups === 1 ? "It starts with a question" : "It starts with questions",
    paragraphs: [
      [...start, ...some, " One of them reads: ", { quote: oneLine(promptTitle(group.prompt), 160) }],
      ["Nobody shows the model a worked answer to copy. It has to try by itself, and only afterwards is it told how well it did."],
    ],
    lines: [],
  };
}

function responseLesson(scene: Scene): Lesson {
  const { group, best, worst, step } = scene;
  const n = group.responses.length;
  const lengths = group.responses.map((r) => r.length);
  const [short, long] = [Math.min(...lengths), Math.max(...lengths)];
  const size: Piece[] = short === long ? many("length", long, "token") : [amount("shortest", short), " to ", ...many("longest", long, "token")];
  const good = said(best);
  const bad = said(worst);
  const quotes: Piece[] = [];
  if (good && worst !== best && !group.flat) {
    quotes.push("One that did well: ", { quote: good });
    if (bad) quotes.push(" One that did less well: ", { quote: bad });
  } else if (good) quotes.push("One of them: ", { quote: good });
  else quotes.push("Their tokens were not captured, so they cannot be quoted here.");
  const part = step.update.kind === "train" && group.inUpdate < n ? [" This update trains on ", amount("in_update", group.inUpdate), " of them."] : [];
  return {
    title: n === 1 ? "The model tries" : `The model tries ${n} times`,
    paragraphs: [
      [
        "Writing, a model throws dice, weighted by how likely it finds each next piece. ",
        ...(n === 1 ? ["Here the question was asked once; the response has "] : ["So the same question gets ", amount("responses", n), short === long ? " different responses, each of " : " different responses, of "]),
        ...size, ".", ...part,
      ],
      quotes,
      ["Each small box is a ", { word: "token" }, ": a word or a piece of one. It is what the model chooses, and what training moves."],
    ],
    lines: [],
  };
}

function rewardLesson(scene: Scene): Lesson {
  const { manifest, attempt, group, best, worst } = scene;
  const names = manifest.reward_names;
  const n = best.components.length;
  const weights = names.map((_, i) => attempt?.reward_weights[i] ?? 1);
  const scored = group.responses.filter((r) => !Number.isNaN(r.reward));
  if (!scored.length) {
    return { title: "Every response gets a score", paragraphs: [["The scores of these responses were not captured."]], lines: [] };
  }
  const how: Piece[] =
    n > 1
      ? [amount("functions", n), " functions score each response, and their scores add up", weights.some((w) => w !== 1) ? ", each times its weight. " : ". "]
      : [n === 1 && names[0] ? "A function scores each response: " : "Each response is scored", ...(n === 1 && names[0] ? [{ quote: oneLine(names[0], 40) }] : []), ". "];
  const mean: Piece[] = group.flat
    ? ["Here all ", ...many("scored", scored.length, "response"), " scored the same: ", num("best", best.reward), ". Then nobody can tell which was better, and nothing is learned from this question."]
    : scored.length === 1
      ? ["This response scored ", num("best", best.reward), "."]
      : ["The best response here scored ", num("best", best.reward), ", the lowest ", num("worst", worst.reward), ". The average of the ", amount("scored", scored.length), " is ", num("mean", group.mean), "."];
  const shown = group.flat || best === worst ? [best] : [best, worst];
  return {
    title: "Every response gets a score",
    paragraphs: [
      [...how, "The score is called the ", { word: "reward" }, ". It is all the model is told: not what was wrong, only how good it was."],
      mean,
    ],
    lines: n > 1 ? shown.map((response) => ({
      label: `response ${nth(group, response)}`,
      sum: [
        ...response.components.flatMap((value, i): Piece[] => [
          i ? " + " : "", { quote: oneLine(names[i] ?? `score ${i + 1}`, 24) }, " ", num(`component.${i}`, value),
          ...(weights[i] !== 1 ? [" × ", num(`weight.${i}`, weights[i] ?? 1)] : []),
        ]),
        // Where they do not add up, the trainer did more than that: then only what they were is said.
        ...(addsUp(response.components, weights, response.reward) ? [" = ", num("reward", response.reward)] : []),
      ],
    })) : [],
  };
}

function addsUp(components: readonly number[], weights: readonly number[], reward: number): boolean {
  const sum = components.reduce((all, value, i) => all + value * (weights[i] ?? 1), 0);
  return Math.abs(sum - reward) <= 1e-4 * Math.max(1, Math.abs(reward));
}
