/** What is shipped: descriptions of parts and algorithms, from the JSON files of the Python package. */
import { specFrom } from "./definition";
import type { AlgorithmSpec, PartDescription, Slot } from "./types";

const PARTS = import.meta.glob<Readonly<Record<string, PartDescription>>>(
  "../../../unipo_hooks/objective/registry/parts/*.json",
  { eager: true, import: "default" },
);
const ALGORITHMS = import.meta.glob<unknown>("../../../unipo_hooks/objective/registry/algorithms/*.json", {
  eager: true,
  import: "default",
});

const descriptions: ReadonlyMap<string, ReadonlyMap<string, PartDescription>> = new Map(
  Object.entries(PARTS).map(([file, parts]) => [
    file.slice(file.lastIndexOf("/") + 1, -".json".length),
    new Map(Object.entries(parts)),
  ]),
);

/** The description of a part; null for one of a user's own, which this page has no code for. */
export function describePart(slot: Slot, name: string): PartDescription | null {
  return descriptions.get(slot)?.get(name) ?? null;
}

/** Names of the parts that are shipped for a slot. */
export function partNames(slot: Slot): readonly string[] {
  return [...(descriptions.get(slot)?.keys() ?? [])];
}

/** Every algorithm that is shipped, by id. */
export const algorithms: ReadonlyMap<string, AlgorithmSpec> = new Map(
  Object.values(ALGORITHMS).map((json) => {
    const spec = specFrom(json);
    return [spec.id, spec];
  }),
);
