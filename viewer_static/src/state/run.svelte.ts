/** The opened run: where it comes from, what is known of it, and following it while it is being written. */
import { EMPTY, type RunIndex } from "../bundle/index";
import { type Overview, readOverview } from "../bundle/overview";
import { Segments } from "../bundle/segments";
import { ConnectionError, FileError, type Source } from "../bundle/source";
import type { Manifest } from "../bundle/types";

/** How often a running bundle is read again, in milliseconds. */
const POLL_MS = 2000;

/** Seconds without a new line after which a run that is said to be running may not be: a killed one cannot say so. */
const SILENCE_S = 600;

export interface Problem {
  title: string;
  message: string;
}

class Run {
  phase = $state<"loading" | "choose" | "failed" | "ready">("loading");
  problem = $state.raw<Problem | null>(null);
  /** Why the person is asked for a folder. */
  reason = $state<"file" | "nothing-here" | "asked">("asked");
  source = $state.raw<Source | null>(null);
  manifest = $state.raw<Manifest | null>(null);
  index = $state.raw<RunIndex>(EMPTY);
  connection = $state<"ok" | "lost">("ok");
  /** Counts successful readings while following. */
  readings = $state(0);
  /** Counts openings, so that what belongs to an older one can tell. */
  opening = $state(0);

  /** Time of the last reading, in seconds since 1970. */
  readAt = $state(0);

  #segments: Segments | null = null;
  #overview: Overview | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;

  get segments(): Segments | null {
    return this.#segments;
  }

  /** Whether new updates may appear without a reload. */
  get live(): boolean {
    return this.source?.where === "http" && this.manifest?.status === "running";
  }

  /** Seconds since the newest line of a run that should be writing, once they are many; else `null`. */
  get silence(): number | null {
    if (!this.live || this.connection !== "ok") return null;
    const started = Date.parse(this.manifest?.attempts.at(-1)?.started ?? "") / 1000;
    const seconds = this.readAt - Math.max(this.index.newest, started || 0);
    return seconds > SILENCE_S ? seconds : null;
  }

  /** What was read last; `null` while nothing was. */
  get overview(): Overview | null {
    return this.#overview;
  }

  /** Asks the person for a folder. */
  choose(reason: Run["reason"]): void {
    clearTimeout(this.#timer);
    this.opening++;
    this.reason = reason;
    this.phase = "choose";
  }

  /**
   * Opens a bundle; at once where its overview is `known` already. False, and still loading, where there is none and
   * there `mayBe` none.
   */
  async open(source: Source, known: Overview | null = null, mayBe: "there" | "absent" = "there"): Promise<boolean> {
    clearTimeout(this.#timer);
    const opening = ++this.opening;
    this.problem = null;
    this.connection = "ok";
    this.source = source;
    this.#segments = new Segments(source);
    this.#overview = null;
    if (known) this.#take(known);
    else {
      this.phase = "loading";
      this.manifest = null;
      this.index = EMPTY;
    }
    try {
      const found = known !== null || (await this.#read(source, opening));
      if (opening !== this.opening) return true;
      if (!found && mayBe === "absent") return false;
      if (!found) throw new FileError("manifest.json", "it is missing");
      this.phase = "ready";
    } catch (error) {
      if (opening !== this.opening) return true;
      this.fail(error);
      if (!(error instanceof ConnectionError)) return true;
    }
    this.#schedule(source, opening);
    return true;
  }

  fail(error: unknown): void {
    this.phase = "failed";
    this.problem = problemOf(error);
  }

  /** Reads manifest, index and metrics; false where there is no manifest. */
  async #read(source: Source, opening: number): Promise<boolean> {
    const overview = await readOverview(source, this.#overview);
    if (!overview) return false;
    if (opening === this.opening) this.#take(overview);
    return true;
  }

  #take(overview: Overview): void {
    this.readAt = Date.now() / 1000;
    if (overview === this.#overview) return;
    this.#overview = overview;
    this.index = overview.index;
    this.manifest = overview.manifest;
  }

  #schedule(source: Source, opening: number): void {
    if (source.where !== "http" || (this.manifest && this.manifest.status !== "running")) return;
    this.#timer = setTimeout(async () => {
      try {
        const found = await this.#read(source, opening);
        if (opening !== this.opening) return;
        this.connection = found ? "ok" : "lost";
        if (found) {
          this.phase = "ready";
          this.readings++;
        }
      } catch (error) {
        if (opening !== this.opening) return;
        if (error instanceof ConnectionError || this.manifest) this.connection = "lost";
        else this.fail(error);
      }
      this.#schedule(source, opening);
    }, POLL_MS);
  }
}

/** What went wrong, and what to do, in words. */
export function problemOf(error: unknown): Problem {
  if (error instanceof FileError) {
    return {
      title: `${error.path} cannot be read`,
      message: `The file is part of this bundle, but ${error.message}. unipo-hooks validate names every fault of a bundle.`,
    };
  }
  if (error instanceof ConnectionError) {
    return { title: "Connection lost, retrying", message: `The bundle's server does not answer: ${error.message}.` };
  }
  return { title: "This bundle cannot be opened", message: error instanceof Error ? error.message : String(error) };
}

export const run = new Run();
