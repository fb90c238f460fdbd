/** The opened run: where it comes from, what is known of it, and following it while it is being written. */
import { buildIndex, EMPTY, type RunIndex } from "../bundle/index";
import { ofAllRanks, parseManifest } from "../bundle/manifest";
import { Segments } from "../bundle/segments";
import { ConnectionError, FileError, httpSource, inlinedSource, type Source } from "../bundle/source";
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
  #texts: string[] = [];
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

  /** Opens what the page brings along, or what lies beside it, or asks. */
  async start(): Promise<void> {
    const inlined = inlinedSource(document);
    if (inlined) return this.open(inlined);
    if (location.protocol === "http:" || location.protocol === "https:") {
      return this.open(httpSource(new URL(".", location.href).href), true);
    }
    this.reason = "file";
    this.phase = "choose";
  }

  async open(source: Source, mayBeAbsent = false): Promise<void> {
    clearTimeout(this.#timer);
    const opening = ++this.opening;
    this.phase = "loading";
    this.problem = null;
    this.connection = "ok";
    this.source = source;
    this.manifest = null;
    this.index = EMPTY;
    this.#texts = [];
    this.#segments = new Segments(source);
    try {
      const found = await this.#read(source, opening);
      if (opening !== this.opening) return;
      if (found) this.phase = "ready";
      else if (mayBeAbsent) {
        this.reason = "nothing-here";
        this.phase = "choose";
        return;
      } else throw new FileError("manifest.json", "it is missing");
    } catch (error) {
      if (opening !== this.opening) return;
      this.fail(error);
      if (!(error instanceof ConnectionError)) return;
    }
    this.#schedule(source, opening);
  }

  fail(error: unknown): void {
    this.phase = "failed";
    if (error instanceof FileError) {
      this.problem = {
        title: `${error.path} cannot be read`,
        message: `The file is part of this bundle, but ${error.message}. unipo-hooks validate names every fault of a bundle.`,
      };
    } else if (error instanceof ConnectionError) {
      this.problem = { title: "Connection lost, retrying", message: `The bundle's server does not answer: ${error.message}.` };
    } else {
      this.problem = {
        title: "This bundle cannot be opened",
        message: error instanceof Error ? error.message : String(error),
      };
    }
  }

  /** Reads manifest, index and metrics; false where there is no manifest. Parses only what changed. */
  async #read(source: Source, opening: number): Promise<boolean> {
    // The manifest first: a status of "finished" then speaks of an index that is complete.
    const bytes = await source.read("manifest.json", true);
    if (!bytes) return false;
    const manifest = parseManifest(decode(bytes));
    const ranks = Array.from({ length: manifest.ranks }, (_, rank) => rank);
    const text = async (name: string) => decode((await source.read(name, true)) ?? new Uint8Array());
    // What ranks say of themselves before their lines, for the same reason.
    const others = await Promise.all(ranks.slice(1).map((rank) => text(`rank.r${rank}.json`)));
    const [index, metrics] = await Promise.all([
      Promise.all(ranks.map((rank) => text(`index.r${rank}.jsonl`))),
      Promise.all(ranks.map((rank) => text(`metrics.r${rank}.jsonl`))),
    ]);
    if (opening !== this.opening) return true;
    this.readAt = Date.now() / 1000;
    const texts = [decode(bytes), ...others, ...index, ...metrics];
    if (texts.length === this.#texts.length && texts.every((t, i) => t === this.#texts[i])) return true;
    this.#texts = texts;
    this.index = buildIndex({ index, metrics }, manifest.attempts);
    this.manifest = ofAllRanks(manifest, others);
    return true;
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

function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

export const run = new Run();
