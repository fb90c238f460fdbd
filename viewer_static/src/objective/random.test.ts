/** Objectives of random parts are what the Python engine made of them (`tests/vectors/from_random.py`), notes included. */
import { readFileSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import { evaluate, makeBatch, specFrom, type Evaluation } from ".";
import { camel, decoded } from "./vectors";

interface File {
  readonly batch: Readonly<Record<string, Parameters<typeof decoded>[0]>>;
  readonly normalisers: Readonly<Record<string, number>>;
  readonly cases: readonly {
    readonly spec: { readonly id: string; readonly parts: object };
    readonly expected: Readonly<Record<string, number | string>> & { readonly notes: readonly string[] };
  }[];
}

const file = JSON.parse(
  readFileSync(new URL("../../../tests/random_objectives.json", import.meta.url), "utf8"),
) as unknown as File;
const [B, T] = [7, 5];
const batch = makeBatch({
  B,
  T,
  arrays: Object.fromEntries(Object.entries(file.batch).map(([name, values]) => [name, decoded(values)])),
  normalisers: Object.fromEntries(Object.entries(file.normalisers).map(([name, value]) => [camel(name), value])),
});
let worst = 0;

test.each(file.cases.map((each) => [each.spec.id, each] as const))("%s", (_id, { spec, expected }) => {
  const found = evaluate(specFrom(spec), batch);
  expect(found.notes).toEqual(expected.notes);
  for (const [name, value] of Object.entries(expected)) {
    if (name === "notes") continue;
    const given = found[camel(name) as keyof Evaluation] as number | Float64Array;
    let mine = 0;
    if (typeof given === "number") mine = given;
    else given.forEach((each, i) => (mine += each * Math.cos(i)));
    const theirs = Number(value);
    const error = mine === theirs ? 0 : Math.abs(mine - theirs) / Math.max(1, Math.abs(theirs));
    expect(error, `${name}: ${mine}, not ${theirs}`).toBeLessThanOrEqual(1e-9);
    worst = Math.max(worst, error);
  }
});

afterAll(() => {
  console.log(`${file.cases.length} random objectives, largest relative error ${worst.toExponential(1)}`);
});
