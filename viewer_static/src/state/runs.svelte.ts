/**
 * The runs that are open side by side. One of them is active: `run` shows it. Of the others the overview is read, once.
 */
import { type Overview, readOverview } from "../bundle/overview";
import { bundleFolders, FileError, type Found, httpSource, inlinedSource, listedBundles, type Source } from "../bundle/source";
import type { Manifest, UpdateMetrics } from "../bundle/types";
import { EMPTY, type RunIndex } from "../bundle/index";
import type { Place } from "./hash";
import { type Problem, problemOf, run } from "./run.svelte";
import { selection } from "./selection.svelte";
import { updates } from "./updates.svelte";

export class OpenedRun {
  /** What a link calls it; unlike any other's. */
  id = $state("");
  readonly name: string;
  readonly source: Source;
  phase = $state<"waiting" | "ready" | "failed">("waiting");
  /** Why it cannot be read. */
  problem = $state.raw<Problem | null>(null);
  /** As it was last read; of the active one `run` knows more. */
  overview = $state.raw<Overview | null>(null);

  constructor(id: string, name: string, source: Source) {
    this.id = id;
    this.name = name;
    this.source = source;
  }

  get active(): boolean {
    return runs.active === this;
  }

  get manifest(): Manifest | null {
    return this.active ? run.manifest : (this.overview?.manifest ?? null);
  }

  get index(): RunIndex {
    return this.active ? run.index : (this.overview?.index ?? EMPTY);
  }
}

/** What charts show of a run. */
export interface ChartedRun {
  id: string;
  name: string;
  algorithm: string;
  active: boolean;
  /** Of training updates. */
  metrics: readonly UpdateMetrics[];
  /** The training updates whose tokens were captured. */
  captured: readonly number[];
}

class Runs {
  /** In the order they were opened. */
  all = $state.raw<readonly OpenedRun[]>([]);
  active = $state.raw<OpenedRun | null>(null);
  readonly several: boolean = $derived(this.all.length > 1);
  /** Those whose metrics are known, the active one among them. */
  readonly charted: readonly ChartedRun[] = $derived(
    this.all
      .filter((each) => each.manifest !== null)
      .map((each) => ({
        id: each.id,
        name: each.name,
        algorithm: each.manifest?.header.algorithm ?? "",
        active: each.active,
        metrics: each.index.metrics.train,
        captured: each.index.updates.train.map((u) => u.update),
      })),
  );
  /** Files of a dropped folder that were found so far; 0 while none is being looked through. */
  looking = $state(0);
  /** What a person should know of the last opening: why nothing came of it, or what was left out. */
  complaint = $state("");
  /** Where a link leads that is to a run which is not open here: gone to as soon as that one is opened. */
  awaited = $state.raw<Place | null>(null);

  #reading = false;

  /** Opens what the page brings along, or what lies beside it, or asks. */
  async start(): Promise<void> {
    const inlined = inlinedSource(document);
    if (inlined) return this.#open({ sources: [inlined], all: 1 });
    if (location.protocol !== "http:" && location.protocol !== "https:") return run.choose("file");
    const base = new URL(".", location.href).href;
    const beside = httpSource(base);
    const only = new OpenedRun(nameOf(beside), nameOf(beside), beside);
    [this.all, this.active] = [[only], only];
    const linked = selection.run === null || selection.run === only.id ? null : selection.place;
    if (await run.open(beside, null, "absent")) {
      if (linked) this.#await(linked);
      return this.#settled();
    }
    [this.all, this.active] = [[], null];
    try {
      const list = await beside.read("bundles.json", true);
      const found = list ? listedBundles(new TextDecoder().decode(list), base) : { sources: [], all: 0 };
      if (found.sources.length) await this.#open(found);
      else run.choose("nothing-here");
    } catch (error) {
      run.fail(error);
    }
  }

  /** Opens the bundles in files a person chose or dropped, beside those that are open; `files` by path. */
  async openFiles(files: ReadonlyMap<string, File>): Promise<void> {
    this.complaint = "";
    try {
      await this.#open(bundleFolders(files));
    } catch (error) {
      // What is open stays open.
      if (run.phase === "ready") this.complaint = error instanceof Error ? error.message : String(error);
      else run.fail(error);
    }
  }

  /** Shows another of the runs. Where the person is in this one is forgotten; how they look at it stays. */
  async activate(id: string): Promise<void> {
    const wanted = this.all.find((each) => each.id === id);
    if (!wanted || wanted === this.active) return;
    if (wanted.phase === "failed") await this.#read(wanted);
    if (!wanted.overview && wanted.phase === "failed") return;
    selection.leaveRun();
    updates.seen = null;
    await this.#show(wanted);
  }

  /** Follows a link to a place in another of the runs. */
  follow(id: string | null): void {
    const wanted = this.all.find((each) => each.id === id);
    if (id !== null && !wanted) this.#await(selection.place);
    if (this.several && wanted && wanted !== this.active && wanted.phase !== "failed") {
      updates.seen = null;
      void this.#show(wanted);
    } else this.#name();
  }

  #await(place: Place): void {
    this.awaited = place;
    selection.leaveRun();
  }

  async #open(found: Found): Promise<void> {
    const beside = run.phase === "ready" ? this.all : [];
    const opened: OpenedRun[] = [];
    for (const source of found.sources) {
      const name = nameOf(source);
      opened.push(new OpenedRun(unlike(name, [...beside, ...opened]), name, source));
    }
    this.all = [...beside, ...opened];
    if (found.all > opened.length) {
      this.complaint = `There are ${found.all} runs there. The first ${opened.length} are open.`;
    }
    // A link into one of them is followed; any other place is one in a run that was open before.
    const place = beside.length ? this.awaited : selection.place;
    const linked = opened.find((each) => each.id === place?.run);
    const served = opened[0]?.source.where !== "folder" && selection.run === null;
    if (linked) {
      if (place) Object.assign(selection, place);
      this.awaited = null;
    } else if (!beside.length && selection.run !== null) this.#await(selection.place);
    else if (!(served && !beside.length)) selection.leaveRun();
    updates.seen = null;
    // The first that can be read; where none can, what is wrong with the first is said.
    let first: Problem | null = null;
    for (const each of linked ? [linked, ...opened.filter((other) => other !== linked)] : opened) {
      await this.#show(each);
      if (run.source !== each.source) return; // another was opened meanwhile
      if (run.phase !== "failed") break;
      first ??= run.problem;
    }
    if (run.phase === "failed") run.problem = first;
  }

  async #show(wanted: OpenedRun): Promise<void> {
    if (this.active && run.overview && run.source === this.active.source) this.active.overview = run.overview;
    this.active = wanted;
    this.#name();
    await run.open(wanted.source, wanted.overview);
    if (run.source === wanted.source) this.#settled();
  }

  /** The active run was opened, or could not be. */
  #settled(): void {
    const { active } = this;
    if (!active) return;
    active.overview = run.overview;
    active.phase = run.phase === "failed" ? "failed" : "ready";
    active.problem = run.phase === "failed" ? run.problem : null;
    this.#replaceOlder(active);
    this.#name();
  }

  /** The hash names the run where there are several. */
  #name(): void {
    selection.run = this.several ? (this.active?.id ?? null) : null;
  }

  /** Reads those that were not read yet, one after the other. */
  async readOthers(): Promise<void> {
    if (this.#reading) return;
    this.#reading = true;
    for (let next; (next = this.all.find((each) => each.phase === "waiting" && !each.active)); ) await this.#read(next);
    this.#reading = false;
  }

  async #read(one: OpenedRun): Promise<void> {
    try {
      one.overview = await readOverview(one.source, one.overview);
      if (!one.overview) throw new FileError("manifest.json", "it is missing");
      one.problem = null;
      one.phase = "ready";
      this.#replaceOlder(one);
    } catch (error) {
      one.problem = problemOf(error);
      one.phase = "failed";
    }
  }

  /** A folder that is opened again takes the place of what was read of it before. */
  #replaceOlder(newer: OpenedRun): void {
    const created = newer.overview?.manifest.created;
    const older = this.all.find(
      (each) =>
        each !== newer && !each.active && each.name === newer.name && each.overview?.manifest.created === created &&
        each.source.where === "folder" && newer.source.where === "folder" && this.all.indexOf(each) < this.all.indexOf(newer),
    );
    if (!created || !older) return;
    this.all = this.all.filter((each) => each !== newer).map((each) => (each === older ? newer : each));
    newer.id = older.id;
    this.#name();
  }
}

/** What a run is called: its folder's name, which the page's title has where the page cannot know it. */
function nameOf(source: Source): string {
  if (source.name) return source.name;
  const titled = /^(.+) · unipo-hooks$/s.exec(document.title)?.[1];
  if (titled) return titled;
  try {
    const folder = source.where === "http" ? location.pathname.split("/").slice(0, -1).pop() : "";
    return decodeURIComponent(folder ?? "") || "run";
  } catch {
    return "run";
  }
}

/** The name, with a number where another run has it already. */
function unlike(name: string, others: readonly OpenedRun[]): string {
  for (let n = 1; ; n++) {
    const id = n === 1 ? name : `${name} (${n})`;
    if (!others.some((each) => each.id === id)) return id;
  }
}

export const runs = new Runs();
