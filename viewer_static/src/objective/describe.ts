/** What is said about parts, and algorithms with other hyper-parameters. */
import { checkValue } from "./checks";
import { describePart, partNames } from "./registry";
import { SLOT_NAMES, inSlot, isList, merged } from "./slots";
import {
  AlgorithmError,
  type AlgorithmSpec,
  type Component,
  type HyperParameter,
  type Parts,
  type PartUse,
  type Scope,
  type Slot,
} from "./types";
import { didYouMean, shown } from "./words";

const SCOPES: readonly Scope[] = ["token", "response", "group", "batch", "history"];

/** Every hyper-parameter of a part as it is used: defaults, then what the algorithm says. */
export function parameters(slot: Slot, use: PartUse): Record<string, unknown> {
  const values = Object.create(null) as Record<string, unknown>;
  for (const [name, { default: value }] of Object.entries(describePart(slot, use.part)?.parameters ?? {})) {
    values[name] = value ?? null;
  }
  for (const [name, value] of Object.entries(use)) if (name !== "part") values[name] = value;
  return values;
}

/** Every part used, with its slot and JSON path, in the order of the slots. */
export function uses(parts: Parts): { slot: Slot; path: string; use: PartUse }[] {
  return SLOT_NAMES.flatMap((slot) =>
    inSlot(parts, slot).map((use, number) => ({ slot, path: isList(slot) ? `${slot}.${number}` : slot, use })),
  );
}

/** Whether a constraint has the coefficient 0: it then does nothing, and needs nothing. */
export function isOff(use: PartUse): boolean {
  const values = parameters("constraint", use);
  return ("beta" in values ? values.beta : values.coefficient) === 0;
}

function everyUse(spec: AlgorithmSpec): { slot: Slot; use: PartUse }[] {
  const chosen =
    spec.mixture.length > 0 ? spec.mixture.map((component) => merged(spec.parts, component.parts)) : [spec.parts];
  return chosen.flatMap(uses).filter(({ slot, use }) => slot !== "constraint" || !isOff(use));
}

/** A need such as `$reference` is the input that hyper-parameter names. */
function resolved(need: string, slot: Slot, use: PartUse): string {
  return need.startsWith("$") ? String(parameters(slot, use)[need.slice(1)]) : need;
}

/**
 * Inputs an algorithm cannot be computed without, `log_probs` and `mask` aside; of some `slots` alone, where given.
 *
 * A part of a user's own needs nothing that is known here.
 */
export function needs(spec: AlgorithmSpec, slots: readonly Slot[] = SLOT_NAMES): string[] {
  const found = new Set<string>();
  for (const { slot, use } of everyUse(spec)) {
    if (!slots.includes(slot)) continue;
    for (const need of describePart(slot, use.part)?.needs ?? []) found.add(resolved(need, slot, use));
  }
  if (spec.mixture.length > 0) found.add("source");
  for (const name of ["log_probs", "mask", "none"]) found.delete(name);
  return [...found];
}

/** Inputs an algorithm looks at where they are there. */
export function inputs(spec: AlgorithmSpec): string[] {
  const further = everyUse(spec).flatMap(({ slot, use }) =>
    (describePart(slot, use.part)?.uses ?? []).map((name) => resolved(name, slot, use)),
  );
  return [...new Set([...needs(spec), ...further])];
}

/** The widest scope of an algorithm's parts; one of a user's own may look at anything in the batch. */
export function scope(spec: AlgorithmSpec): Scope {
  const places = everyUse(spec).map(({ slot, use }) => SCOPES.indexOf(describePart(slot, use.part)?.scope ?? "batch"));
  return SCOPES[Math.max(...places)]!;
}

/**
 * Throws AlgorithmError, naming the JSON path, where a part is not one of this page's or has no such hyper-parameter,
 * or a hyper-parameter is of the wrong kind; with `ranges` also where a number is outside its range.
 */
export function check(spec: AlgorithmSpec, ranges: boolean): void {
  checkParts(spec.parts, "parts", ranges);
  spec.mixture.forEach((component, number) =>
    checkParts(merged(spec.parts, component.parts), `mixture.${number}.parts`, ranges),
  );
}

function checkParts(parts: Parts, prefix: string, ranges: boolean): void {
  for (const { slot, path, use } of uses(parts)) {
    const place = `${prefix}.${path}`;
    const description = describePart(slot, use.part);
    if (description === null) {
      const hint = didYouMean(use.part, partNames(slot), "");
      throw new AlgorithmError(
        `${place}.part: no part ${shown(use.part)} for the slot ${slot}${hint}; ` +
          "a part of your own is computed in Python, where it is registered, and not on this page",
      );
    }
    const known = Object.keys(description.parameters ?? {});
    for (const [name, value] of Object.entries(use)) {
      if (name === "part") continue;
      if (!known.includes(name)) {
        const hint = didYouMean(name, known, `; it has ${known.join(", ") || "none"}`);
        throw new AlgorithmError(`${place}.${name}: ${use.part} has no such hyper-parameter${hint}`);
      }
      checkValue(`${place}.${name}`, description, name, value, ranges);
    }
  }
}

/**
 * The algorithm taking the batch's own `advantages` instead of computing them from rewards.
 *
 * What it makes of an advantage from token to token acts on the given ones, unless they are `modulated` already.
 */
export function givenAdvantages(spec: AlgorithmSpec, modulated = false): AlgorithmSpec {
  const changes = { reward: [], baseline: { part: "recorded" }, scale: [] };
  return { ...spec, parts: merged(spec.parts, modulated ? { ...changes, modulation: [] } : changes) };
}

interface Place {
  /** Number of the mixture's component; null of the algorithm itself. */
  readonly component: number | null;
  readonly prefix: string;
  readonly slot: Slot;
  readonly path: string;
  /** Place in the slot's list. */
  readonly number: number;
  readonly use: PartUse;
}

/** Parts that are used. A slot in which every component of a mixture differs from the algorithm is used by none. */
function changeable(spec: AlgorithmSpec): Place[] {
  const replaced = (slot: Slot) =>
    spec.mixture.length > 0 && spec.mixture.every(({ parts }) => parts[slot] !== undefined);
  const placed = (parts: Parts, component: number | null, isOwn: (slot: Slot) => boolean) =>
    uses(parts)
      .filter(({ slot }) => isOwn(slot))
      .map(({ slot, path, use }) => ({
        component,
        prefix: component === null ? "" : `mixture.${component}.`,
        slot,
        path,
        number: isList(slot) ? Number(path.split(".")[1]) : 0,
        use,
      }));
  return [
    ...placed(spec.parts, null, (slot) => !replaced(slot)),
    ...spec.mixture.flatMap(({ parts }, number) =>
      placed(merged(spec.parts, parts), number, (slot) => parts[slot] !== undefined),
    ),
  ];
}

/** Every hyper-parameter that can be changed, with its value now. */
export function hyperParameters(spec: AlgorithmSpec): HyperParameter[] {
  return changeable(spec).flatMap(({ prefix, slot, path, use }) => {
    const values = parameters(slot, use);
    return Object.entries(describePart(slot, use.part)?.parameters ?? {}).map(([name, description]) => ({
      path: `${prefix}${path}.${name}`,
      slot,
      part: use.part,
      name,
      value: values[name],
      description,
    }));
  });
}

/**
 * The algorithm with other hyper-parameters.
 *
 * A name is a hyper-parameter's (`epsilon_high`) where one part alone has it, those of a mixture's components included,
 * or a path (`constraint.0.beta`, `mixture.1.gate.gamma`). Throws AlgorithmError where no part has it or several do.
 */
export function withHyperParameters(spec: AlgorithmSpec, changes: Readonly<Record<string, unknown>>): AlgorithmSpec {
  let changed = spec;
  for (const [name, value] of Object.entries(changes)) {
    const place = placeOf(spec, name);
    const key = name.slice(name.lastIndexOf(".") + 1);
    checkValue(name, describePart(place.slot, place.use.part)!, key, value);
    changed = changedAt(changed, place, key, value);
  }
  return changed;
}

function changedAt(spec: AlgorithmSpec, place: Place, key: string, value: unknown): AlgorithmSpec {
  const change = <Of extends Partial<Parts>>(parts: Of): Of => {
    const held: PartUse | readonly PartUse[] = parts[place.slot]!;
    const changed = (use: PartUse): PartUse => ({ ...use, [key]: value });
    const now = Array.isArray(held)
      ? held.map((use: PartUse, number) => (number === place.number ? changed(use) : use))
      : changed(held as PartUse);
    return { ...parts, [place.slot]: now };
  };
  if (place.component === null) return { ...spec, parts: change(spec.parts) };
  const mixture = spec.mixture.map(
    (component, number): Component =>
      number === place.component ? { ...component, parts: change(component.parts) } : component,
  );
  return { ...spec, mixture };
}

/** Where the hyper-parameter of a name is. */
function placeOf(spec: AlgorithmSpec, name: string): Place {
  const dot = name.lastIndexOf(".");
  const path = name.slice(0, Math.max(dot, 0));
  const key = name.slice(dot + 1);
  const every = hyperParameters(spec).map((each) => each.path);
  const found = changeable(spec).filter(
    (place) =>
      every.includes(`${place.prefix}${place.path}.${key}`) &&
      ["", `${place.prefix}${place.path}`, `${place.prefix}${place.slot}`].includes(path),
  );
  if (found.length === 1) return found[0]!;
  if (found.length > 1) {
    const which = found.map((place) => `${place.prefix}${place.path}.${key}`).join(", ");
    throw new AlgorithmError(`${spec.id} has ${key} more than once; say which: ${which}`);
  }
  const known = [...new Set([...every.map((each) => each.slice(each.lastIndexOf(".") + 1)), ...every])];
  const hint = didYouMean(name, known, `; it has ${[...every].sort().join(", ") || "none"}`);
  throw new AlgorithmError(`${spec.id} has no hyper-parameter ${name}${hint}`);
}
