/**
 * An algorithm's definition from outside, such as a bundle's manifest: nothing of it is trusted.
 *
 * Only keys of objects themselves are read, and what they may be called is known but for parts of a user's own; such a
 * part is kept without a prototype, as it came.
 */
import { SLOT_NAMES, isList } from "./slots";
import { AlgorithmError, type AlgorithmSpec, type Component, type Parts, type PartUse, type Slot } from "./types";
import { cut, didYouMean, shown } from "./words";

type Json = ReadonlyMap<string, unknown>;

const TEXTS = ["title", "source", "family", "story", "changed", "inexact"] as const;
/** `evidence` is said to nobody here. */
const FIELDS = ["id", "name", ...TEXTS, "evidence", "year", "parent", "exact", "parts", "mixture", "display"];
const COMPONENT = ["source", "coefficient", "denominator", "statistics", "parts"];

/** A slot → a part of it, for an example of how one is written. */
const EXAMPLES: Readonly<Record<Slot, string>> = {
  filter: "groups_with_signal",
  reward: "clipped_reward",
  baseline: "group_mean",
  scale: "group_std",
  modulation: "given_weights",
  ratio: "token",
  bounds: "around_one",
  gate: "ppo_clip",
  weight: "truncated",
  mask: "truncated_responses",
  constraint: "kl",
  aggregation: "token_mean",
};

/** What a slot holds where a definition says nothing. */
const DEFAULTS: Partial<Parts> = {
  filter: [],
  reward: [],
  baseline: { part: "none" },
  scale: [],
  modulation: [],
  ratio: { part: "token" },
  bounds: { part: "unbounded" },
  weight: [],
  mask: [],
  constraint: [],
};

/** An algorithm from its JSON, defaults filled in. Throws AlgorithmError in one line that begins with a JSON path. */
export function specFrom(json: unknown): AlgorithmSpec {
  const given = object(json, "definition");
  onlyKnown(given, FIELDS, "");
  for (const name of ["id", "name", "parts"]) {
    if (given.has(name)) continue;
    throw new AlgorithmError(`${name}: every algorithm needs ${name === "parts" ? "them" : "one"}`);
  }
  const texts = Object.fromEntries(TEXTS.map((name) => [name, text(given.get(name) ?? "", name)]));
  const year = given.get("year") ?? null;
  if (year !== null && !Number.isInteger(year)) {
    throw new AlgorithmError(`year: an integer is needed, not ${shown(year)}`);
  }
  const parent = given.get("parent") ?? null;
  const exact = given.get("exact") ?? false;
  if (typeof exact !== "boolean") throw new AlgorithmError(`exact: true or false is needed, not ${shown(exact)}`);
  const display = given.get("display") ?? null;
  const id = text(given.get("id"), "id");
  if (id.trim() === "") throw new AlgorithmError("id: a text is needed that is not empty");
  return {
    ...(texts as Pick<AlgorithmSpec, (typeof TEXTS)[number]>),
    id,
    name: text(given.get("name"), "name"),
    year: year as number | null,
    parent: parent === null ? null : text(parent, "parent"),
    exact,
    parts: partsFrom(given.get("parts")),
    mixture: list(given.get("mixture") ?? [], "mixture").map((each, number) => component(each, `mixture.${number}`)),
    display: display === null ? null : (Object.fromEntries(object(display, "display")) as Record<string, unknown>),
  };
}

function partsFrom(json: unknown): Parts {
  const slots = slotsFrom(json, "parts");
  for (const slot of ["gate", "aggregation"] as const) {
    if (slots[slot] === undefined) throw new AlgorithmError(`parts.${slot}: every algorithm needs one`);
  }
  return { ...DEFAULTS, ...slots } as Parts;
}

function slotsFrom(json: unknown, path: string): Partial<Parts> {
  const given = object(json, path);
  onlyKnown(given, SLOT_NAMES, `${path}.`, "slot");
  const found: Partial<Record<Slot, PartUse | readonly PartUse[]>> = {};
  for (const [name, value] of given) {
    const slot = name as Slot;
    const place = `${path}.${slot}`;
    if (!isList(slot)) {
      if (Array.isArray(value)) throw new AlgorithmError(`${place}: one part is needed here, not a list`);
      found[slot] = useFrom(value, place, slot);
    } else if (Array.isArray(value)) {
      found[slot] = value.map((each, number) => useFrom(each, `${place}.${number}`, slot));
    } else if (isObject(value)) throw new AlgorithmError(`${place}: write it in [ ]`);
    else throw new AlgorithmError(`${place}: a list is needed, as in [${example(slot, value)}], or [] for none`);
  }
  return found as Partial<Parts>;
}

function useFrom(json: unknown, path: string, slot: Slot): PartUse {
  if (typeof json === "string") throw new AlgorithmError(`${path}: write ${example(slot, json)}`);
  if (!isObject(json)) {
    throw new AlgorithmError(`${path}: an object is needed, as in ${example(slot, null)}, not ${shown(json)}`);
  }
  const given = object(json, path);
  if (!given.has("part")) throw new AlgorithmError(`${path}.part: name the part, as in ${example(slot, null)}`);
  const use = Object.create(null) as Record<string, unknown>;
  for (const [name, value] of given) use[name] = value;
  use.part = text(given.get("part"), `${path}.part`);
  return use as PartUse;
}

function component(json: unknown, path: string): Component {
  const given = object(json, path);
  onlyKnown(given, COMPONENT, `${path}.`);
  if (!given.has("source")) throw new AlgorithmError(`${path}.source: every component needs one`);
  const source = given.get("source");
  if (typeof source !== "number" || !Number.isInteger(source)) {
    throw new AlgorithmError(`${path}.source: an integer is needed, not ${shown(source)}`);
  }
  if (source < 0) {
    throw new AlgorithmError(`${path}.source: 0 (sampled by the policy) or above is needed, not ${source}`);
  }
  const coefficient = given.get("coefficient") ?? 1;
  if (typeof coefficient !== "number" || !Number.isFinite(coefficient)) {
    throw new AlgorithmError(`${path}.coefficient: a finite number is needed, not ${shown(coefficient)}`);
  }
  return {
    source,
    coefficient,
    denominator: ownOrAll(given.get("denominator") ?? "own", `${path}.denominator`),
    statistics: ownOrAll(given.get("statistics") ?? "all", `${path}.statistics`),
    parts: slotsFrom(given.get("parts") ?? {}, `${path}.parts`),
  };
}

function ownOrAll(value: unknown, path: string): "own" | "all" {
  if (value === "own" || value === "all") return value;
  throw new AlgorithmError(`${path}: ${shown(value)} is not one of own, all`);
}

function isObject(json: unknown): json is object {
  return typeof json === "object" && json !== null && !Array.isArray(json);
}

/** The keys an object has itself. One called `__proto__` is never meant. */
function object(json: unknown, path: string): Json {
  if (!isObject(json)) throw new AlgorithmError(`${path}: an object { } is needed, not ${shown(json)}`);
  const found = new Map(Object.entries(json));
  if (found.has("__proto__")) throw new AlgorithmError(`${path}.__proto__: no such field`);
  return found;
}

function list(json: unknown, path: string): readonly unknown[] {
  if (!Array.isArray(json)) throw new AlgorithmError(`${path}: a list is needed, not ${shown(json)}`);
  return json;
}

function text(json: unknown, path: string): string {
  if (typeof json !== "string") throw new AlgorithmError(`${path}: a text is needed, not ${shown(json)}`);
  return json;
}

function onlyKnown(given: Json, known: readonly string[], path: string, kind = "field"): void {
  for (const name of given.keys()) {
    if (known.includes(name)) continue;
    throw new AlgorithmError(`${path}${cut(name)}: no such ${kind}${didYouMean(name, known)}`);
  }
}

/** A part as JSON: with the name that was written, where it was a text. */
function example(slot: Slot, value: unknown): string {
  return JSON.stringify({ part: typeof value === "string" ? cut(value) : EXAMPLES[slot] }).replace(":", ": ");
}
