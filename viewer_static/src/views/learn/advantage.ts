/** Beat 4: from a score to an advantage, step by step, as the run's own algorithm does it. */
import { describePart } from "../../objective";
import { amount, type Lesson, type Line, num, type Piece, said, sentences, signed, whole } from "./pieces";
import { trainedWith, nth, type Scene } from "./scene";

/** How far an advantage may be from what the steps give and still be called their result. */
const CLOSE = 2e-3;

export function advantageLesson(scene: Scene): Lesson {
  const { group, step } = scene;
  const response = scene.pass?.response ?? scene.best;
  const advantage = trainedWith(scene);
  const title = group.responses.length > 1 ? "Better than its siblings, or worse?" : "Better than expected, or worse?";
  if (step.update.kind === "eval") {
    return { title, paragraphs: [["In training, each score would now be compared with those of its siblings. An evaluation stops here: it only measures."]], lines: [] };
  }
  if (group.flat && (advantage === 0 || Number.isNaN(advantage))) {
    return {
      title,
      paragraphs: [
        ["All ", amount("responses", group.responses.length), " responses scored ", num("mean", group.mean), ", so each is exactly average. Its ", { word: "advantage" }, ", how much better than expected it was, is 0."],
        ["Every sibling scored the same, so there is nothing to learn from this group. Its tokens are not pushed."],
      ],
      lines: [],
    };
  }
  const steps = compared(scene, response.reward);
  const better = advantage > 0;
  const size = describeSize(scene);
  const meaning: Piece[] = Number.isNaN(advantage)
    ? ["What this run made of it was not captured."]
    : [
        "For response ", whole("response", nth(group, response)), " that gives ", signed("advantage", advantage), ". ",
        advantage === 0 ? "It was as good as expected, so its tokens are left as they are."
          : better ? "Above 0: it did better than expected, so its tokens are candidates to be made more likely."
          : "Below 0: it did worse than expected, so its tokens are candidates to be made less likely.",
      ];
  const off = steps && !Number.isNaN(advantage) && Math.abs(steps.gives - advantage) > CLOSE * Math.max(1, Math.abs(advantage));
  const more: Piece[] = off ? [" The steps shown give ", signed("steps", steps.gives), "; this run's algorithm changes it further before it is used."] : [];
  const text = said(response, 60);
  const whose: Piece[] = text ? [" It reads: ", { quote: text }] : [];
  return {
    title,
    paragraphs: [
      [...(steps?.words ?? [baselineWords(scene)]), " The result is called the ", { word: "advantage" }, "."],
      [...meaning, ...more, ...whose],
      ...(size.length ? [size] : []),
    ],
    lines: steps?.lines ?? [],
  };
}

/** The comparison of a group, where the run's algorithm is one; `null` where it is another. */
function compared(scene: Scene, reward: number): { words: Piece[]; lines: Line[]; gives: number } | null {
  const { spec, group } = scene;
  const baseline = spec?.parts.baseline.part;
  const rewards = group.responses.map((r) => r.reward);
  const n = rewards.length;
  if (n < 2 || rewards.some(Number.isNaN) || spec?.parts.reward.length) return null;
  let expected: number;
  let name: string;
  const words: Piece[] = [];
  if (baseline === "group_mean") {
    [expected, name] = [group.mean, "mean of the group"];
    words.push("A score alone says little: a question may be easy. So it is compared with the average of the ", amount("responses", n), " responses to the same question.");
  } else if (baseline === "leave_one_out") {
    expected = (group.mean * n - reward) / (n - 1);
    name = "mean of the others";
    words.push("A score alone says little: a question may be easy. So it is compared with the average of the ", amount("others", n - 1), " other responses to the same question.");
  } else return null;
  let gives = reward - expected;
  const lines: Line[] = [
    { label: `reward − ${name}`, sum: [num("reward", reward), " − ", num("mean", expected), " = ", signed("difference", gives)] },
  ];
  const [scale, ...others] = spec?.parts.scale ?? [];
  if (scale?.part === "group_std" && !others.length) {
    const deviation = spreadOf(rewards, typeof scale.ddof === "number" ? scale.ddof : 1);
    const eps = typeof scale.eps === "number" ? scale.eps : 1e-4;
    words.push(" The difference is divided by how far these scores lie apart, their standard deviation: where they lie close, a small lead counts as much.");
    lines.push({
      label: "÷ standard deviation",
      sum: [signed("difference", gives), " ÷ ", num("std", deviation), " = ", signed("quotient", gives / (deviation + eps))],
    });
    gives /= deviation + eps;
  } else if (scale) {
    const explained = describePart("scale", scale.part)?.explanation;
    if (explained) words.push(` ${sentences(explained, 1)}`);
  } else words.push(" The difference is taken as it is.");
  return { words, lines, gives };
}

/** Standard deviation with `ddof` degrees of freedom taken off. */
function spreadOf(values: readonly number[], ddof: number): number {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / Math.max(1, values.length - ddof));
}

function baselineWords({ spec, group }: Scene): string {
  const explained = spec && spec.parts.baseline.part !== "recorded" ? describePart("baseline", spec.parts.baseline.part)?.explanation : null;
  if (explained) return sentences(explained, 3);
  const how = group.responses.length > 1 ? "as its siblings show what was to be expected" : "by what was to be expected";
  return `Each score is set against the others, ${how}. This page does not know in which way this run does it, so the trainer's own result is shown.`;
}

/** How many of the group are on either side. */
function describeSize({ group }: Scene): Piece[] {
  const known = group.responses.filter((r) => !Number.isNaN(r.advantage));
  if (known.length < 2) return [];
  const [up, down] = [known.filter((r) => r.advantage > 0).length, known.filter((r) => r.advantage < 0).length];
  return ["In this group ", amount("above", up), up === 1 ? " response is" : " responses are", " above 0 and ", amount("below", down), " below."];
}
