/** What is known of an opened update, worked out once: its micro-batches, its channels, and its rollouts. */
import type { Step, StepGroup, StepResponse } from "../bundle/step";
import type { Manifest } from "../bundle/types";
import { componentsOf, type Level, levelsOf, type MicroBatch, microBatches, rankOf } from "./batches";

/** Channels measured at the update: of a response that is in another update alone they are not known. */
const MEASURED: ReadonlySet<string> = new Set(["log_probs", "entropies", "policy_mask"]);

/** Inputs that are known of every response of a rollout, whether its tokens were stored or not. */
const OF_EVERY_RESPONSE: ReadonlySet<string> = new Set(["reward", "group", "reward_components", "reward_weights", "mask"]);

/** A response of a rollout, whatever update it was trained in. */
export interface Sampled {
  readonly response: StepResponse;
  readonly group: StepGroup;
}

export class Captured {
  readonly step: Step;
  readonly manifest: Manifest;
  readonly levels: ReadonlyMap<string, Level>;
  /** Inputs there are for the engine. */
  readonly channels: ReadonlySet<string>;
  /** How many reward functions there are values of. */
  readonly components: number;
  /** Rollout → its responses on all ranks, by rank and row. */
  readonly rollouts: ReadonlyMap<number, readonly Sampled[]>;
  readonly #complete = new Map<string, boolean>();
  #everything: boolean | null = null;
  #rows: number | null = null;
  #withoutReward: number | null = null;
  #microBatches: readonly MicroBatch[] | null = null;

  constructor(step: Step, manifest: Manifest) {
    this.step = step;
    this.manifest = manifest;
    this.levels = levelsOf(step, manifest);
    this.components = componentsOf(step, manifest);
    const channels = new Set([...this.levels.keys(), "mask", "reward", "group"]);
    if (this.components > 0) channels.add("reward_components");
    this.channels = channels;
    const rollouts = new Map<number, Sampled[]>();
    for (const group of step.groups) {
      const known = rollouts.get(group.rollout) ?? [];
      known.push(...group.responses.map((response) => ({ response, group })));
      rollouts.set(group.rollout, known);
    }
    for (const all of rollouts.values()) {
      all.sort((a, b) => rankOf(a.response) - rankOf(b.response) || a.response.row - b.response.row);
    }
    this.rollouts = rollouts;
  }

  get microBatches(): readonly MicroBatch[] {
    this.#microBatches ??= microBatches(this.step, this.manifest, this.levels);
    return this.#microBatches;
  }

  /** How many responses the update trained on, a response counting in each of its forward passes. */
  get rows(): number {
    this.#rows ??= this.lines.reduce((sum, line) => sum + line.rows, 0);
    return this.#rows;
  }

  /** How many of them are stored. */
  get storedRows(): number {
    return this.microBatches.reduce((sum, each) => sum + each.passes.length, 0);
  }

  get lines() {
    return this.step.update.parts.flatMap((part) => part.micro_batches);
  }

  /** Ranks that trained together in the update's attempt. */
  get ranks(): number {
    const { update } = this.step;
    return this.manifest.attempts.find((each) => each.attempt === update.attempt)?.ranks ?? this.manifest.ranks;
  }

  /** Responses of the rollouts, and how many of them have no reward. */
  get sampled(): number {
    return this.step.groups.reduce((sum, { responses }) => sum + responses.length, 0);
  }

  get withoutReward(): number {
    this.#withoutReward ??= this.step.groups.reduce(
      (sum, { responses }) => sum + responses.filter((each) => !Number.isFinite(each.reward)).length,
      0,
    );
    return this.#withoutReward;
  }

  /** Whether every rank that trained has written the update. */
  get allRanks(): boolean {
    return this.step.update.parts.length >= this.ranks;
  }

  /** Whether the update's responses are all stored, those of every rank. */
  get whole(): boolean {
    return this.allRanks && this.storedRows === this.rows;
  }

  /** Whether a rollout's response has the input. */
  has(name: string, { response, group }: Sampled): boolean {
    if (OF_EVERY_RESPONSE.has(name) || (this.levels.get(name) === "response" && name !== "truncated")) return true;
    if (!group.kept) return false;
    // What an alias stands for decides when it was measured.
    if (MEASURED.has(group.aliases[name] ?? name) && !response.passes[0]?.measured) return false;
    return true;
  }

  /** Whether all responses of the rollouts have all inputs. */
  get everything(): boolean {
    this.#everything ??= [...this.channels].every((name) => this.complete(name));
    return this.#everything;
  }

  /** Whether all responses of the rollouts have the input; or all of those groups that a stored response is of. */
  complete(name: string, inGroups = false): boolean {
    const key = `${inGroups}:${name}`;
    let known = this.#complete.get(key);
    if (known === undefined) {
      const every = [...this.rollouts.values()].flat();
      known = every.every((each) => (inGroups && !(each.group.kept && each.group.inUpdate)) || this.has(name, each));
      this.#complete.set(key, known);
    }
    return known;
  }
}

const known = new WeakMap<Step, Captured>();

/** What is known of the step; the same object each time. */
export function captured(step: Step, manifest: Manifest): Captured {
  let found = known.get(step);
  if (!found) {
    found = new Captured(step, manifest);
    known.set(step, found);
  }
  return found;
}
