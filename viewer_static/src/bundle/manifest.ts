/** Reading `manifest.json`. */
import type { Attempt, Manifest, Status } from "./types";

/** Version of the format this viewer reads, and the only major one. */
const MAJOR = 1;

/** A manifest this viewer cannot read; the message says what to do. */
export class ManifestError extends Error {}

/** Parses and checks a manifest. Missing fields take their defaults, unknown ones are ignored. */
export function parseManifest(text: string): Manifest {
  let data: unknown;
  try {
    data = JSON.parse(text);
  } catch {
    throw new ManifestError("manifest.json is not valid JSON. Copy the bundle again, or run unipo-hooks validate on it.");
  }
  const raw = record(data);
  if (raw.format !== "unipo-bundle") {
    throw new ManifestError("This manifest.json does not belong to a unipo-hooks bundle.");
  }
  const version = raw.version === undefined ? "1.0" : string(raw.version, JSON.stringify(raw.version).slice(0, 40));
  // A number in place of the text is no version: 9 would not be read as 9.0 everywhere.
  const major = typeof raw.version === "string" || raw.version === undefined ? Number.parseInt(version, 10) : NaN;
  if (!Number.isFinite(major)) throw new ManifestError(`manifest.json has no readable format version (“${version}”).`);
  if (major > MAJOR) {
    throw new ManifestError(`This bundle has format ${version}, this viewer reads ${MAJOR}.x: update unipo-hooks.`);
  }
  const header = record(raw.header);
  const trainer = record(raw.trainer);
  const lost = record(raw.lost);
  const groupSize = record(header.hparams).group_size;
  return {
    version,
    created: string(raw.created),
    status: status(raw.status),
    header: {
      task: string(header.task),
      dataset: string(header.dataset),
      algorithm: string(header.algorithm),
      model_name: string(header.model_name),
      totalSteps: typeof header.totalSteps === "number" ? header.totalSteps : null,
      group_size: typeof groupSize === "number" ? groupSize : null,
    },
    trainer: { library: string(trainer.library), version: string(trainer.version) },
    ranks: Math.max(1, number(raw.ranks, 1)),
    channels: strings(raw.channels),
    reward_names: strings(raw.reward_names),
    attempts: Array.isArray(raw.attempts) ? raw.attempts.map(attempt) : [],
    algorithms: Array.isArray(raw.algorithms) ? raw.algorithms : [],
    lost: {
      rollouts: number(lost.rollouts, 0),
      updates: number(lost.updates, 0),
      evaluations: number(lost.evaluations, 0),
      tokens: number(lost.tokens, 0),
      reason: typeof lost.reason === "string" ? lost.reason : null,
    },
  };
}

/**
 * The manifest as if one rank had written all of it: it speaks of rank 0 alone. `texts` are the `rank.r1.json` and so on
 * of the others, those of another run are passed over. Ranks share their rollouts and updates: of those that were lost the
 * largest number counts.
 */
export function ofAllRanks(manifest: Manifest, texts: readonly string[]): Manifest {
  const newest = manifest.attempts.at(-1)?.attempt ?? 0;
  const all = { ...manifest, channels: [...manifest.channels], lost: { ...manifest.lost } };
  texts.forEach((text, index) => {
    let raw: Record<string, unknown>;
    try {
      raw = record(JSON.parse(text));
    } catch {
      return;
    }
    if (raw.created !== manifest.created) return;
    const lost = record(raw.lost);
    for (const name of ["rollouts", "updates", "evaluations"] as const) {
      all.lost[name] = Math.max(all.lost[name], number(lost[name], 0));
    }
    all.lost.tokens += number(lost.tokens, 0);
    if (typeof lost.reason === "string") {
      all.lost.reason = [all.lost.reason, `rank ${index + 1}: ${lost.reason}`].filter(Boolean).join("; ");
    }
    all.channels.push(...strings(raw.channels).filter((name) => !all.channels.includes(name)));
    if (raw.attempt === newest) all.status = least(all.status, status(raw.status));
  });
  return all;
}

/** A run goes on while any rank of it does. */
function least(a: Status, b: Status): Status {
  return (["running", "interrupted"] as const).find((each) => a === each || b === each) ?? "finished";
}

function attempt(value: unknown): Attempt {
  const raw = record(value);
  return {
    attempt: number(raw.attempt, 0),
    started: string(raw.started),
    first_update: number(raw.first_update, 0),
    status: status(raw.status),
    ranks: typeof raw.ranks === "number" ? raw.ranks : null,
    algorithm: raw.algorithm ?? null,
    algorithm_notes: strings(raw.algorithm_notes),
    reward_weights: Array.isArray(raw.reward_weights) ? raw.reward_weights.filter((w) => typeof w === "number") : [],
  };
}

function status(value: unknown): Status {
  return value === "finished" || value === "interrupted" ? value : "running";
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : {};
}

function string(value: unknown, fallback = ""): string {
  return typeof value === "string" ? value : fallback;
}

function strings(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((item) => typeof item === "string") : [];
}

function number(value: unknown, fallback: number): number {
  return typeof value === "number" && Number.isFinite(value) ? value : fallback;
}
