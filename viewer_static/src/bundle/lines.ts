/** The lines of `index.r*.jsonl` and `metrics.r*.jsonl`, from text to records. Unknown fields and entries are ignored. */
import type { LogLine, MetricsLine, MicroBatchLine, RolloutLine, Span, UpdateLine } from "./types";

/**
 * Objects of a file of JSON lines. An unterminated last line is left out: it is still being written. A line that is
 * not JSON is left out too and named in `faults`, so that one damaged line hides one entry and not the run.
 */
export function parseLines(text: string, file: string, faults: string[] = []): Record<string, unknown>[] {
  const lines = text.split("\n");
  lines.pop(); // "" after the last newline, or the unterminated line
  const objects: Record<string, unknown>[] = [];
  lines.forEach((line, i) => {
    if (!line.trim()) return;
    try {
      const value: unknown = JSON.parse(line);
      if (typeof value === "object" && value !== null) objects.push(value as Record<string, unknown>);
    } catch {
      faults.push(`${file}, line ${i + 1}, is not JSON and is left out.`);
    }
  });
  return objects;
}

function common(raw: Record<string, unknown>) {
  return {
    kind: raw.kind === "eval" ? ("eval" as const) : ("train" as const),
    attempt: number(raw.attempt),
    step: number(raw.step),
  };
}

export function rolloutLine(raw: Record<string, unknown>): RolloutLine {
  return {
    entry: "rollout",
    ...common(raw),
    rollout: number(raw.rollout),
    segment: String(raw.segment ?? ""),
    responses: span(raw.responses),
    tokens: span(raw.tokens),
    groups: number(raw.groups),
    kept: Array.isArray(raw.kept) ? raw.kept.map(number) : null,
    weight: typeof raw.weight === "number" ? raw.weight : 1,
    aliases: entries(raw.aliases, (value) => (typeof value === "string" ? value : null)),
  };
}

export function updateLine(raw: Record<string, unknown>): UpdateLine {
  return {
    entry: "update",
    ...common(raw),
    update: number(raw.update),
    rollouts: Array.isArray(raw.rollouts) ? raw.rollouts.map(number) : [],
    is_first_step_after_rollout_phase: raw.is_first_step_after_rollout_phase === true,
    segment: String(raw.segment ?? ""),
    responses: span(raw.responses),
    tokens: span(raw.tokens),
    time: number(raw.time),
    accumulation_steps: optional(raw.accumulation_steps) ?? 1,
    data_parallel_size: optional(raw.data_parallel_size) ?? 1,
    length_constant: optional(raw.length_constant),
    micro_batches: Array.isArray(raw.micro_batches) ? raw.micro_batches.map(microBatchLine) : [],
  };
}

function microBatchLine(value: unknown): MicroBatchLine {
  const raw = typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
  return {
    rollout: number(raw.rollout),
    rows: number(raw.rows),
    tokens: number(raw.tokens),
    loss: optional(raw.loss),
    entropy_coef: optional(raw.entropy_coef),
    entropy_bonus: optional(raw.entropy_bonus),
    router_loss: optional(raw.router_loss),
    dtype: typeof raw.dtype === "string" ? raw.dtype : "float32",
    update_tokens: optional(raw.update_tokens),
    update_rows: optional(raw.update_rows),
    width: optional(raw.width),
    counted_rows: optional(raw.counted_rows),
    groups: optional(raw.groups),
    loss_gap: optional(raw.loss_gap),
    loss_tolerance: optional(raw.loss_tolerance),
    data_parallel_rank: optional(raw.data_parallel_rank),
  };
}

export function metricsLine(raw: Record<string, unknown>): MetricsLine {
  return {
    entry: "metrics",
    ...common(raw),
    update: number(raw.update),
    rollouts: Array.isArray(raw.rollouts) ? raw.rollouts.map(number) : [],
    is_first_step_after_rollout_phase: raw.is_first_step_after_rollout_phase === true,
    captured: raw.captured === true,
    sums: entries(raw.sums, (value) =>
      Array.isArray(value) ? ([number(value[0]), number(value[1]), number(value[2])] as const) : null,
    ),
    scalars: entries(raw.scalars, (value) => (typeof value === "number" ? value : null)),
  };
}

export function logLine(raw: Record<string, unknown>): LogLine {
  return {
    entry: "log",
    ...common(raw),
    update: number(raw.update),
    scalars: entries(raw.scalars, (value) => (typeof value === "number" ? value : null)),
  };
}

function number(value: unknown): number {
  return typeof value === "number" ? value : 0;
}

function optional(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}

function span(value: unknown): Span {
  return Array.isArray(value) ? [number(value[0]), number(value[1])] : [0, 0];
}

function entries<T>(value: unknown, convert: (value: unknown) => T | null): Record<string, T> {
  // No prototype: names come from the run, and `__proto__` is a name like any other.
  const out: Record<string, T> = Object.create(null);
  if (typeof value !== "object" || value === null) return out;
  for (const [name, item] of Object.entries(value)) {
    const converted = convert(item);
    if (converted !== null) out[name] = converted;
  }
  return out;
}
