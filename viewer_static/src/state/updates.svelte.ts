/** The captured updates of the opened run, and the one that is open. */
import type { CapturedUpdate } from "../bundle/types";
import { run } from "./run.svelte";
import { selection } from "./selection.svelte";

class Updates {
  /** Captured ones of the kind that is looked at, in order. */
  readonly all: readonly CapturedUpdate[] = $derived(run.index.updates[selection.kind]);
  readonly newest: number | null = $derived(
    (this.all.at(-1) ?? run.index.metrics[selection.kind].at(-1))?.update ?? null,
  );
  readonly current: CapturedUpdate | null = $derived(this.all.find((u) => u.update === selection.update) ?? null);
  readonly metricsOnly: boolean = $derived(
    selection.update !== null &&
      !this.current &&
      run.index.metrics[selection.kind].some((m) => m.update === selection.update),
  );
  /** Whether tokens are still to come: of any update, where none has some yet, or of the one that is open. */
  readonly pending: boolean = $derived(
    run.live &&
      run.silence === null &&
      run.index.metrics[selection.kind].some((m) => m.captured && (!this.all.length || m.update === selection.update)),
  );
  /** The newest update a person has looked at the run with. */
  seen = $state<number | null>(null);
  /** Captured updates that appeared since. */
  readonly fresh: readonly number[] = $derived.by(() => {
    const { seen } = this;
    return seen === null || selection.follow ? [] : this.all.filter((u) => u.update > seen).map((u) => u.update);
  });

  /** Opens the captured update before or after the open one. */
  neighbour(by: -1 | 1): void {
    const at = selection.update ?? 0;
    const next = by > 0 ? this.all.find((u) => u.update > at) : this.all.findLast((u) => u.update < at);
    if (!next) return;
    // A further pass over the same rollout has the same responses: what is picked stays picked.
    const { current } = this;
    const same = current?.attempt === next.attempt && String(current.rollouts) === String(next.rollouts);
    selection.openUpdate(selection.kind, next.update, same);
  }

  showNewest(): void {
    if (this.newest === null) return;
    this.seen = this.newest;
    selection.show(selection.kind, this.newest);
  }
}

export const updates = new Updates();
