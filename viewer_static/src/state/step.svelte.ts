/** The update that is open: its groups and tokens, loaded when it is picked. */
import { loadStep, type Step, trainedIn } from "../bundle/step";
import type { CapturedUpdate } from "../bundle/types";
import type { RunIndex } from "../bundle/index";
import type { SegmentReader } from "../bundle/segments";

class OpenStep {
  step = $state.raw<Step | null>(null);
  loading = $state(false);
  error = $state.raw<unknown>(null);
  /** `rollout:responseKey` → captured updates that trained on the response. */
  trained = $state.raw<Map<string, number[]>>(new Map());

  #ticket = 0;

  /** Opens an update; `again` is another try at the one that failed, whose error stays until then. */
  async open(
    update: CapturedUpdate | null,
    index: RunIndex,
    segments: SegmentReader | null,
    again = false,
  ): Promise<void> {
    const ticket = ++this.#ticket;
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
      this.error = null;
    } catch (error) {
      if (ticket !== this.#ticket) return;
      this.step = null;
      this.error = error;
    } finally {
      if (ticket === this.#ticket) this.loading = false;
    }
  }

  /** Finds out which other updates trained on the responses. A file that cannot be read costs only this note. */
  async findTrained(step: Step, index: RunIndex, segments: SegmentReader): Promise<void> {
    try {
      const trained = await trainedIn(step, index, segments);
      if (this.step === step) this.trained = trained;
    } catch {
      if (this.step === step) this.trained = new Map();
    }
  }
}

export const open = new OpenStep();
