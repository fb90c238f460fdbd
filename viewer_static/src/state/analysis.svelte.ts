/** What algorithms make of the open update: the run's own, a what-if, and a second one beside. Computed when first read. */
import { analysed, type Analysis, newestSpec, ownSpec, reconcile, type Reconciled } from "../analysis";
import { algorithms, type AlgorithmSpec, specFrom } from "../objective";
import { type Fitting, withFitting } from "../analysis/swap";
import { run } from "./run.svelte";
import { selection } from "./selection.svelte";
import { open } from "./step.svelte";

class AnalysisOfStep {
  /** Registered algorithms and those the run carries, by id. */
  readonly registry: ReadonlyMap<string, AlgorithmSpec> = $derived.by(() => {
    const all = new Map(algorithms);
    for (const json of run.manifest?.algorithms ?? []) {
      try {
        const spec = specFrom(json);
        all.set(spec.id, spec);
      } catch {
        // One that cannot be read is not offered.
      }
    }
    return all;
  });

  /** The algorithm the open update was trained with, of no update the newest attempt's; `null` where the run does not say. */
  readonly ownSpec: AlgorithmSpec | null = $derived.by(() => {
    if (!run.manifest) return null;
    return open.step ? ownSpec(run.manifest, open.step.update.attempt) : newestSpec(run.manifest);
  });

  readonly own: Analysis | null = $derived(this.#of(this.ownSpec, true));
  readonly reconciled: Reconciled | null = $derived(
    open.step && run.manifest ? reconcile(open.step, run.manifest, this.own) : null,
  );

  readonly #fitting: Fitting | null = $derived.by(() => {
    const { what } = selection;
    if (!what) return null;
    const base = what.id === this.ownSpec?.id ? this.ownSpec : this.registry.get(what.id);
    return base ? withFitting(base, what.changes) : null;
  });
  /** The algorithm of the what-if with its hyper-parameters; `null` while there is none, or it cannot be had. */
  readonly whatSpec: AlgorithmSpec | null = $derived(this.#fitting?.spec ?? null);
  /** The changes of the what-if that could be made. */
  readonly changes: Readonly<Record<string, unknown>> = $derived(this.#fitting?.made ?? {});
  /** Those that could not be, in words. */
  readonly refused: readonly string[] = $derived(this.#fitting?.refused ?? []);
  readonly what: Analysis | null = $derived(this.#of(this.whatSpec, false));

  /** What colours the tokens: the what-if where there is one, else the run's own. */
  readonly shown: Analysis | null = $derived(this.whatSpec ? this.what : this.own);

  readonly versusSpec: AlgorithmSpec | null = $derived(
    selection.versus === null ? null : (this.registry.get(selection.versus) ?? null),
  );
  readonly versus: Analysis | null = $derived(this.#of(this.versusSpec, false));

  #of(spec: AlgorithmSpec | null, own: boolean): Analysis | null {
    return spec && open.step && run.manifest ? analysed(open.step, run.manifest, spec, own) : null;
  }
}

export const analysis = new AnalysisOfStep();
