/** Whether a hyper-parameter can have a value; what is wrong with it, in one line with its JSON path. */
import { INPUTS } from "./inputTable";
import { AlgorithmError, type ParameterDescription, type PartDescription } from "./types";
import { didYouMean, numberText, shown } from "./words";

/** The range of a number in words, such as `above 0 and at most 1`; empty where every finite number will do. */
function allowed({ minimum, maximum, above, below }: ParameterDescription): string {
  const words = [];
  if (minimum !== undefined) {
    const to = maximum === undefined ? null : numberText(maximum);
    words.push(to === null ? `${numberText(minimum)} or more` : `from ${numberText(minimum)} to ${to}`);
  }
  else if (maximum !== undefined && above === undefined) words.push(`${numberText(maximum)} or less`);
  if (above !== undefined) {
    words.push(`above ${numberText(above)}`);
    if (maximum !== undefined) words.push(`at most ${numberText(maximum)}`);
  }
  if (below !== undefined) words.push(`below ${numberText(below)}`);
  return words.join(" and ");
}

/**
 * Throws AlgorithmError, naming the JSON path and what is needed, where a hyper-parameter cannot have a value.
 *
 * With `ranges` false a number of the right kind will do: what a trainer was set to is computed as far as it can be.
 */
export function checkValue(path: string, part: PartDescription, name: string, value: unknown, ranges = true): void {
  const parameter = part.parameters?.[name];
  if (parameter === undefined || (value === null && parameter.nullable)) return;
  const isChannel = [...(part.needs ?? []), ...(part.uses ?? [])].includes(`$${name}`);
  if (isChannel && parameter.choices === undefined) checkChannel(path, value);
  else if (parameter.choices !== undefined) {
    if (!parameter.choices.includes(value)) {
      const known = parameter.choices.map(String);
      const hint = typeof value === "string" ? didYouMean(value, known, "") : "";
      throw new AlgorithmError(`${path}: ${shown(value)} is not one of ${known.join(", ")}${hint}`);
    }
  } else if (typeof parameter.default === "boolean") {
    if (typeof value !== "boolean") throw new AlgorithmError(`${path}: true or false is needed, not ${shown(value)}`);
  } else if (typeof parameter.default === "string") {
    if (typeof value !== "string") throw new AlgorithmError(`${path}: a text is needed, not ${shown(value)}`);
  } else checkNumber(path, parameter, value, ranges);
}

function checkNumber(path: string, parameter: ParameterDescription, value: unknown, ranges: boolean): void {
  if (typeof value !== "number") throw new AlgorithmError(`${path}: a number is needed, not ${shown(value)}`);
  if (!Number.isFinite(value)) throw new AlgorithmError(`${path}: a finite number is needed, not ${value}`);
  if (!ranges) return;
  if (parameter.integer && !Number.isInteger(value)) {
    throw new AlgorithmError(`${path}: an integer is needed, not ${numberText(value)}`);
  }
  const { minimum = -Infinity, maximum = Infinity, above = -Infinity, below = Infinity } = parameter;
  if (value >= minimum && value <= maximum && value > above && value < below) return;
  const orNull = parameter.nullable ? ", or null," : ",";
  throw new AlgorithmError(`${path}: must be ${allowed(parameter)}${orNull} not ${numberText(value)}`);
}

/** Throws AlgorithmError where a hyper-parameter names no channel of a value a token. */
function checkChannel(path: string, value: unknown): void {
  if (typeof value !== "string") {
    throw new AlgorithmError(`${path}: the name of a channel is needed, not ${shown(value)}`);
  }
  const perToken = Object.keys(INPUTS).filter((name) => INPUTS[name]!.axes === "BT");
  if (perToken.includes(value)) return;
  const policies = perToken.filter((name) => name.endsWith("log_probs")).join(", ");
  if (INPUTS[value] !== undefined) {
    throw new AlgorithmError(`${path}: ${value} has no value a token; there are ${policies}`);
  }
  const hint = didYouMean(value, perToken, ` (there are ${policies})`);
  throw new AlgorithmError(`${path}: no channel ${shown(value)}${hint}`);
}
