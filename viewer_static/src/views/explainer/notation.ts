/** One notation through all slots: registered formulas are each written for themselves, and what one defines another takes. */
import { type AlgorithmSpec, describePart, type Slot } from "../../objective";

const ADVANTAGE = /(\\hat A(?:_(?:\{[^}]*\}|[a-zA-Z]))?)'*(?![\w'(])/g;

/** The formula with every advantage in it primed `times` times. */
export function primed(latex: string, times: number): string {
  return latex.replace(ADVANTAGE, (_, symbol: string) => symbol + "'".repeat(times));
}

/** Primes of the advantage a part defines and of the one it takes: each step after the baseline adds one. */
export function primesOf(spec: AlgorithmSpec, slot: Slot, number: number): { defined: number; taken: number } {
  const { scale, modulation } = spec.parts;
  const own = slot === "scale" ? number + 1 : slot === "modulation" ? scale.length + number + 1 : 0;
  if (slot === "baseline" || own) return { defined: own, taken: Math.max(0, own - 1) };
  const last = scale.length + modulation.length;
  return { defined: last, taken: last };
}

/** Whether the gate speaks of the ratio as ρ: then the ratio's own formula defines that. */
export function gateTakesRho(spec: AlgorithmSpec): boolean {
  return /\\rho(?![_a-zA-Z])/.test(describePart("gate", spec.parts.gate.part)?.latex ?? "");
}
