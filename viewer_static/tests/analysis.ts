/**
 * The viewer's analysis on a bundle in a folder, outside a browser: `node analysis.js`, given the questions as JSON on its
 * standard input, prints the answers as JSON. For tests/viewer/test_analysis.py, which knows the right ones from Python.
 */
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

import { analyse, available, changed, ownSpec, reconcile, type Analysis } from "../src/analysis";
import { buildIndex } from "../src/bundle/index";
import { ofAllRanks, parseManifest } from "../src/bundle/manifest";
import { Segments } from "../src/bundle/segments";
import { loadStep } from "../src/bundle/step";
import { algorithms, withHyperParameters } from "../src/objective";

/** What is asked: an update of a bundle under algorithms; `null` is the run's own, `id: null` the run's own changed. */
interface Question {
  bundle: string;
  update: number;
  algorithms: ({ id: string | null; changes: Record<string, unknown> } | null)[];
}

async function answer({ bundle, update, algorithms: asked }: Question): Promise<unknown> {
  const text = (name: string) => readFileSync(join(bundle, name), "utf8");
  const names = readdirSync(bundle);
  const all = (kind: string) => names.filter((name) => name.startsWith(`${kind}.r`)).sort().map(text);
  const manifest = ofAllRanks(parseManifest(text("manifest.json")), all("rank"));
  const index = buildIndex({ index: all("index"), metrics: all("metrics") }, manifest.attempts);
  const segments = new Segments({
    where: "folder",
    read: (path) => Promise.resolve(new Uint8Array(readFileSync(join(bundle, path)))),
  });
  const found = index.updates.train.find((each) => each.update === update);
  if (!found) throw new Error(`no update ${update}`);
  const step = await loadStep(found, index, segments);
  const own = ownSpec(manifest, found.attempt);
  if (!own) throw new Error("the run names no algorithm");
  const started = performance.now();
  const ofRun = analyse(step, manifest, own, true);
  const first = performance.now() - started;
  const answers = asked.map((each) => {
    if (each === null) return said(ofRun);
    const spec = withHyperParameters(each.id === null ? own : algorithms.get(each.id)!, each.changes);
    return { ...said(analyse(step, manifest, spec, false)), available: available(step, manifest, spec) };
  });
  const listed = performance.now();
  const missing = [...algorithms.values()].map((spec) => [spec.id, available(step, manifest, spec).missing]);
  return {
    answers,
    reconciled: reconcile(step, manifest, ofRun),
    available: Object.fromEntries(missing),
    changed: asked.map((each) =>
      each && each.id === null
        ? changed(ofRun, analyse(step, manifest, withHyperParameters(own, each.changes), false))
        : null,
    ),
    milliseconds: { own: first, available: performance.now() - listed },
  };
}

function said(analysis: Analysis): Record<string, unknown> {
  const { missing, approximate, notes, loss, whole } = analysis;
  const passes = [...analysis.passes.values()].map(({ pass, penalties: _, ...values }) => ({
    // `rollout:rank.row`, or `rank.row` in an update of one rollout.
    key: pass.key,
    row: pass.response.row,
    microBatch: pass.measured!.microBatch,
    counts: Array.from(pass.tokens!.mask),
    ...Object.fromEntries(Object.entries(values).map(([name, array]) => [name, Array.from(array as ArrayLike<number>)])),
  }));
  const microBatches = analysis.microBatches.map(({ rank, number, evaluation, whole, loss, gap, tolerance }) => {
    return { rank, number, recomputed: evaluation.loss, whole, loss, gap, tolerance };
  });
  return { missing, approximate, notes, loss, whole, passes, microBatches };
}

const questions = JSON.parse(readFileSync(0, "utf8")) as Question[];
const answers: unknown[] = [];
for (const question of questions) answers.push(await answer(question));
process.stdout.write(JSON.stringify(answers));
