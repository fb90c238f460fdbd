/** The engine passes every vector the Python engine passes: `tests/objective/test_vectors.py`, with its tolerances. */
import { afterAll, describe, expect, test } from "vitest";
import { errors, evaluated, sections } from "./vectors";

const every = Object.entries(sections());
const worst = { error: 0, case: "" };
let compared = 0;

describe.each(every)("%s", (section, cases) => {
  test.each(cases.map((each, number) => [number, each.name, each] as const))("%i %s", (_number, name, each) => {
    if (each.expected.error !== undefined) {
      expect(() => evaluated(each)).toThrow(String(each.expected.error));
    } else {
      for (const [what, error] of Object.entries(errors(each, evaluated(each)))) {
        expect(error, what).toBeLessThanOrEqual(each.tolerance);
        if (error > worst.error) Object.assign(worst, { error, case: `${section}: ${name}: ${what}` });
      }
    }
    compared++;
  });
});

afterAll(() => {
  console.log(`${compared} vectors, largest error ${worst.error.toExponential(1)} (${worst.case})`);
});
