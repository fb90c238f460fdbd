/** The update that is open: its groups and tokens, loaded when it is picked. */
import { loadStep, type Step, type Trained, trainedIn } from "../bundle/step";
import type { CapturedUpdate } from "../bundle/types";
import type { RunIndex } from "../bundle/index";
import type { SegmentReader } from "../bundle/segments";

class OpenStep {
  step = $state.raw<Step | null>(null);
  loading = $state(false);
  error = $state.raw<unknown>(null);
  /** Which captured updates trained on the responses of the step, as far as it was looked up. */
  trained = $state.raw<Trained | null>(null);

  #ticket = 0;
  #last: [CapturedUpdate | null, RunIndex, SegmentReader | null] | null = null;

  /** Another try at what failed, whose error stays until then. */
  async again(): Promise<void> {
    if (this.#last) await this.open(...this.#last, true);
  }

  /** Opens an update; `again` is another try at the one that failed. */
  async open(
    update: CapturedUpdate | null,
    index: RunIndex,
    segments: SegmentReader | null,
    again = false,
  ): Promise<void> {
    const ticket = ++this.#ticket;
    this.#last = [update, index, segments];
    if (!again) this.error = null;
    if (!update || !segments) {
      this.step = null;
      this.loading = false;
      return;
    }
    this.loading = true;
    try {
      const step = await loadStep(update, index, segments);
      if (ticket !== this.#ticket) return;
      this.step = step;
      this.trained = null;
      this.error = null;
    } catch (error) {
      if (ticket !== this.#ticket) return;
      this.step = null;
      this.error = error;
    } finally {
      if (ticket === this.#ticket) this.loading = false;
    }
  }

  /**
   * Finds out which other updates trained on the responses; without `all`, only from files that are here already. A
   * file that cannot be read costs only this note.
   */
  async findTrained(step: Step, all: boolean): Promise<void> {
    const [, index, segments] = this.#last ?? [];
    if (!index || !segments || this.step !== step || this.trained?.whole) return;
    try {
      const trained = await trainedIn(step, index, segments, all);
      if (this.step === step && !this.trained?.whole) this.trained = trained;
    } catch {
      // What is known stays.
    }
  }
}

export const open = new OpenStep();
