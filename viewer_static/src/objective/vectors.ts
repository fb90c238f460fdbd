/** Reads the cases of `tests/vectors.json`, for tests alone; their form is said in `tests/vectors/format.py`. */
import { readFileSync } from "node:fs";
import { algorithms, evaluate, givenAdvantages, makeBatch, specFrom } from ".";
import { AlgorithmError, type AlgorithmSpec, type Evaluation, type Normalisers } from "./types";

type Numbers = number | string | readonly Numbers[];

export interface Case {
  readonly name: string;
  readonly algorithm: string | object;
  readonly hyper_parameters: Readonly<Record<string, unknown>>;
  readonly given_advantages: boolean;
  readonly batch: Readonly<Record<string, Numbers>>;
  readonly normalisers: Readonly<Record<string, number>>;
  readonly expected: Readonly<Record<string, Numbers>>;
  readonly tolerance: number;
}

/** Every case, by the section it is from. */
export function sections(): Record<string, readonly Case[]> {
  const file = new URL("../../../tests/vectors.json", import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")) as Record<string, readonly Case[]>;
}

/** Nested lists as one array; what is not finite is text. */
export function decoded(values: Numbers): Float64Array {
  return Float64Array.from([values].flat(3) as (number | string)[], Number);
}

function specOf(algorithm: string | object): AlgorithmSpec {
  if (typeof algorithm !== "string") return specFrom(algorithm);
  const known = algorithms.get(algorithm);
  if (known === undefined) throw new AlgorithmError(`no algorithm '${algorithm}'`);
  return known;
}

/** `accumulation_steps` → `accumulationSteps`. */
export function camel(name: string): string {
  return name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
}

/** What the engine makes of a case. */
export function evaluated(each: Case): Evaluation {
  const own = specOf(each.algorithm);
  const spec = each.given_advantages ? givenAdvantages(own, true) : own;
  const shape = each.batch.log_probs ?? each.batch.mask;
  const rows = Array.isArray(shape) ? (shape as readonly Numbers[]) : [];
  const arrays = Object.fromEntries(Object.entries(each.batch).map(([name, values]) => [name, decoded(values)]));
  const normalisers = Object.fromEntries(
    Object.entries(each.normalisers).map(([name, value]) => [camel(name), value]),
  ) as Partial<Normalisers>;
  const T = Array.isArray(rows[0]) ? rows[0].length : 0;
  return evaluate(spec, makeBatch({ B: rows.length, T, arrays, normalisers }), each.hyper_parameters);
}

/** Largest error of everything a case expects; that of a loss divided by max(1, Σ |aggregation × objective|). */
export function errors(each: Case, evaluation: Evaluation): Record<string, number> {
  const found: Record<string, number> = {};
  for (const [name, value] of Object.entries(each.expected)) {
    const given = evaluation[camel(name) as keyof Evaluation] as number | Float64Array;
    const mine = typeof given === "number" ? [given] : given;
    const theirs = decoded(value);
    const scale = name.endsWith("loss") ? Math.max(1, evaluation.magnitude) : 1;
    let worst = mine.length === theirs.length ? 0 : NaN;
    theirs.forEach((other, i) => {
      const error = other === mine[i] ? 0 : Math.abs(other - mine[i]!) / scale;
      // NaN stays: it is an error larger than any tolerance.
      if (!(error <= worst)) worst = error;
    });
    found[name] = worst;
  }
  return found;
}
