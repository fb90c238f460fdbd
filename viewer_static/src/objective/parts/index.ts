/**
 * The parts objectives are made of: pure functions on arrays, by slot and name, as in `unipo_hooks.objective.parts`.
 *
 * What a part is called, needs and means stands in `registry/parts/{slot}.json`; what it computes stands here, in a
 * module a slot.
 */
import type { Prepared } from "../prepared";
import { AGGREGATION } from "./aggregation";
import { BASELINE } from "./baseline";
import { BOUNDS } from "./bounds";
import { CONSTRAINT } from "./constraint";
import { FILTER } from "./filter";
import { GATE } from "./gate";
import { MASK } from "./mask";
import { MODULATION } from "./modulation";
import { RATIO } from "./ratio";
import { REWARD } from "./reward";
import { SCALE } from "./scale";
import type { Advantages, Bounds, Constraint, Gate, Mask, Ratio, Rewards, Table } from "./types";
import { WEIGHT } from "./weight";

/** What a slot's functions are called with, and what they give. */
interface Functions {
  readonly filter: Table<[Prepared], Float64Array>;
  readonly reward: Table<[Prepared, Rewards], Rewards>;
  readonly baseline: Table<[Prepared, Rewards], Advantages>;
  readonly scale: Table<[Prepared, Rewards, Advantages], Advantages>;
  readonly modulation: Table<[Prepared, Advantages], Advantages>;
  readonly ratio: Table<[Prepared, Float64Array, Bounds], Ratio>;
  readonly bounds: Table<[Prepared, Float64Array], Bounds>;
  readonly gate: Table<[Prepared, Float64Array, Ratio, Bounds], Gate>;
  readonly weight: Table<[Prepared], Float64Array>;
  readonly mask: Table<[Prepared, Float64Array, Ratio], Mask>;
  readonly constraint: Table<[Prepared, Float64Array, Ratio], Constraint>;
  readonly aggregation: Table<[Prepared, Float64Array], Float64Array>;
}

export const FUNCTIONS: Functions = {
  filter: FILTER,
  reward: REWARD,
  baseline: BASELINE,
  scale: SCALE,
  modulation: MODULATION,
  ratio: RATIO,
  bounds: BOUNDS,
  gate: GATE,
  weight: WEIGHT,
  mask: MASK,
  constraint: CONSTRAINT,
  aggregation: AGGREGATION,
};
