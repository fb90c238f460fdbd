/** The formula of a part as it is shown: as the registry has it, or as these hyper-parameters make it. */
import { type PartUse, parameters, type Slot } from "../../objective";
import { at, type Reading } from "./reading";

const UNCLIPPED = "\\rho\\,\\hat A_i";
const CAPPED = "\\min(\\rho,\\,\\delta)\\,\\hat A_i";
const CLIPPED = "\\operatorname{clip}(\\rho,\\,\\rho_{\\min},\\,\\rho_{\\max})\\,\\hat A_i";
const DUAL = "c\\,\\hat A_i";

/** How equal two branches must be for none to have won. */
const TIE = 1e-12;

export interface Branch {
  latex: string;
  value: number;
  /** What it is called in a sentence. */
  name: string;
  state: "wins" | "loses" | "ties";
}

/** The branches of a gate that chooses between some, with the winner marked; none where the part has no branches. */
export function branches(use: PartUse, of: Reading | null): readonly Branch[] {
  if (use.part !== "ppo_clip") return [];
  const { dual_clip: dual, delta } = parameters("gate", use);
  const [advantage, ratio] = [at(of, "advantages"), at(of, "ratio")];
  const [low, high] = [at(of, "low"), at(of, "high")];
  const capped = typeof delta === "number";
  const open = (capped ? Math.min(ratio, delta) : ratio) * advantage;
  const clipped = Math.max(low, Math.min(high, ratio)) * advantage;
  const all: Branch[] = [
    { latex: capped ? CAPPED : UNCLIPPED, value: open, name: "unclipped", state: "ties" },
    { latex: CLIPPED, value: clipped, name: "clipped", state: "ties" },
  ];
  if (typeof dual === "number" && !(advantage >= 0)) all.push({ latex: DUAL, value: dual * advantage, name: "dual clip", state: "ties" });
  return decided(all);
}

/** The winner: the least of the first two, unless a third is above it. Equal values leave it open. */
export function decided(all: readonly Branch[]): readonly Branch[] {
  const [open, clipped, dual] = all;
  if (!open || !clipped || all.some((branch) => Number.isNaN(branch.value))) return all;
  const mark = (winner: Branch | null) => all.map((branch): Branch => ({ ...branch, state: winner ? (branch === winner ? "wins" : "loses") : "ties" }));
  const least = same(open.value, clipped.value) ? null : open.value < clipped.value ? open : clipped;
  if (!dual) return mark(least);
  const value = Math.min(open.value, clipped.value);
  if (same(dual.value, value)) return mark(null);
  if (dual.value > value) return mark(dual);
  return least ? mark(least) : all.map((branch): Branch => ({ ...branch, state: branch === dual ? "loses" : "ties" }));
}

function same(a: number, b: number): boolean {
  return Math.abs(a - b) <= TIE * Math.max(Math.abs(a), Math.abs(b));
}

/** The formula, the registry's where it says everything. `registered` is "" for a part this page does not know. */
export function formula(slot: Slot, use: PartUse, registered: string, of: Reading | null): string {
  if (slot === "gate" && use.part === "ppo_clip") {
    const [open, clipped, dual] = branches(use, of);
    const min = `\\min\\left(${open?.latex},\\ ${clipped?.latex}\\right)`;
    return dual ? `\\max\\left(${min},\\ ${dual.latex}\\right)` : min;
  }
  if (slot === "constraint" && use.part === "kl") return klFormula(use);
  if (slot === "aggregation") return SHARES.get(use.part) ?? registered;
  return registered;
}

/** Symbol of the policy a channel of log-probs belongs to. */
export function policySymbol(reference: unknown): string {
  return `\\pi_{\\mathrm{${POLICIES.get(String(reference)) ?? "ref"}}}`;
}

const POLICIES: ReadonlyMap<string, string> = new Map([
  ["ref_log_probs", "ref"], ["old_log_probs", "old"], ["rollout_log_probs", "sampler"], ["dpo_log_probs", "dpo"], ["augmented_log_probs", "masked"],
]);

function klFormula(use: PartUse): string {
  const { estimator, reference, times_ratio: times, before_weight: weighted } = parameters("constraint", use);
  const fraction = `\\frac{${policySymbol(reference)}}{\\pi_\\theta}`;
  const log = `\\log${fraction}`;
  const kind = String(estimator).replace("+", "");
  const estimates = new Map([["k1", `\\left(-${log}\\right)`], ["k2", `\\tfrac12\\left(${log}\\right)^2`], ["abs", `\\left|${log}\\right|`]]);
  const estimate = estimates.get(kind);
  const factors = `\\beta\\,${weighted ? "m\\,w\\," : ""}${times ? "\\rho\\," : ""}`;
  return `${factors}${estimate ?? `\\left(${fraction}-${log}-1\\right)`}`;
}

/** A token's share of the loss: what an aggregation comes to for one token. */
const SHARES: ReadonlyMap<string, string> = new Map([
  ["sequence_mean_token_mean", "a = \\frac{1}{N}\\cdot\\frac{1}{|y_i|}"],
  ["sequence_mean_token_sum", "a = \\frac{1}{N}"],
  ["sequence_mean_constant_length", "a = \\frac{1}{N}\\cdot\\frac{1}{L}"],
  ["token_mean", "a = \\frac{1}{\\sum_j |y_j|}"],
  ["group_token_mean", "a = \\frac{1}{|\\mathcal G|}\\cdot\\frac{1}{\\sum_{j\\in g} |y_j|}"],
  ["token_sum", "a = \\frac{1}{L}"],
  ["sequence_sum_token_mean", "a = \\frac{1}{|y_i|}"],
]);
