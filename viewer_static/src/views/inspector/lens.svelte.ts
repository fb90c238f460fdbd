/** How the open group is looked at: the channel, its values and scale, the marks, and which responses are shown. */
import { type Analysis, type Changed, changed } from "../../analysis";
import type { Pass, StepGroup, StepResponse } from "../../bundle/step";
import { available, type Channel, channelNamed, defaultChannel, relativeTo } from "../../channels";
import { type Scale, scaleOf, withReach } from "../../colour";
import { analysis } from "../../state/analysis.svelte";
import { pickedGroup } from "../../state/picked.svelte";
import { selection, type TokenRef } from "../../state/selection.svelte";
import { open } from "../../state/step.svelte";
import { arrange } from "./arrange";
import { findText } from "./find";
import { knownChannels } from "./group";
import { marksOf } from "./marks";
import { picks } from "./queries";
import { channelValues, LESSONS, noSignal, relative, resultOf, samples, scalePasses, type Values } from "./values";

/** A piece of found text: where its first token is. */
export interface Hit extends TokenRef {
  end: number;
}

class Lens {
  readonly group: StepGroup | null = $derived(pickedGroup.current);
  readonly analysis: Analysis | null = $derived(analysis.shown?.missing === "" ? analysis.shown : null);

  readonly known: ReadonlySet<string> = $derived(
    this.group && open.step ? knownChannels(open.step, this.group, this.analysis) : new Set<string>(),
  );
  readonly channels: readonly Channel[] = $derived(available(this.known));
  /** By what moves in the whole update: a group that teaches nothing is then seen to be one. */
  readonly #fallback: string | null = $derived.by(() => {
    const { analysis: shown } = this;
    const passes = (open.step?.groups ?? []).flatMap((group) => scalePasses(group));
    return defaultChannel(this.known, (name) => samples(passes, (pass) => channelValues(pass, name, shown)).map(({ values }) => values));
  });
  /** The channel asked for, which may be missing here. */
  readonly wanted: string | null = $derived(selection.channel ?? selection.firstChannel);
  readonly name: string | null = $derived(
    this.wanted !== null && this.known.size && this.channels.some((c) => c.name === this.wanted) ? this.wanted : this.#fallback,
  );
  /** As it is looked at: relative to the response where that was asked for. */
  readonly channel: Channel | null = $derived.by(() => {
    if (this.name === null) return null;
    const channel = channelNamed(this.name);
    return selection.relative ? relativeTo(channel) : channel;
  });

  readonly silent: boolean = $derived(this.group !== null && noSignal(this.group, this.analysis));
  /** Whether tokens are coloured: not by what would be learned, where there is nothing to learn. */
  readonly painted: boolean = $derived(this.name !== null && !(this.silent && LESSONS.has(this.name)));

  /** Reach of the scale that is not locked: over the group, or over the update. */
  readonly #free: Scale | null = $derived.by(() => {
    const { group, channel } = this;
    if (!group || !channel) return null;
    const own = scaleOf(channel, samples(scalePasses(group), (pass) => this.values(pass)));
    if (selection.over === "group" || channel.limit !== undefined) return own;
    const all = (open.step?.groups ?? []).flatMap((each) => [...scalePasses(each)]);
    return withReach(own, scaleOf(channel, samples(all, (pass) => this.values(pass))).reach);
  });
  /** The scale that colours the tokens; counts and extremes are the group's. */
  readonly scale: Scale | null = $derived(
    this.#free && this.locked ? withReach(this.#free, selection.reach ?? 0) : this.#free,
  );

  get locked(): boolean {
    return selection.over === "run" && selection.reach !== null && this.name === this.wanted && this.channel?.limit === undefined;
  }

  /** Values of the channel, as it is looked at. */
  values(pass: Pass): Values | null {
    if (this.name === null || !pass.tokens) return null;
    const values = channelValues(pass, this.name, this.analysis);
    return values && selection.relative ? relative(values, pass.tokens.mask) : values;
  }

  /** Tokens that the what-if changes, by pass. */
  readonly changed: ReadonlyMap<string, readonly Changed[]> = $derived.by(() => {
    const by = new Map<string, Changed[]>();
    const { own, what } = analysis;
    if (!selection.what || !own || !what || own.missing || what.missing) return by;
    for (const each of changed(own, what)) {
      const list = by.get(each.pass);
      if (list) list.push(each);
      else by.set(each.pass, [each]);
    }
    return by;
  });

  readonly responses: readonly StepResponse[] = $derived(
    this.group ? arrange(this.group, selection.sort, selection.filter, this.analysis, this.changed) : [],
  );

  /** The pass whose tokens the Tab key stops at: the selected one, or the first. */
  readonly stop: string | null = $derived.by(() => {
    const passes = this.responses.flatMap((r) => r.passes).filter((p) => p.tokens?.n);
    return (passes.find((p) => p.key === selection.pass) ?? passes[0])?.key ?? null;
  });

  /** Ranges of tokens that hold the text that is looked for, by pass. */
  readonly #found: ReadonlyMap<string, readonly (readonly [number, number])[]> = $derived(
    new Map(
      selection.find
        ? (this.group?.passes ?? []).map((pass) => [pass.key, pass.tokens ? findText(pass.tokens, selection.find) : []])
        : [],
    ),
  );
  /** The same in reading order, of the responses that are shown. */
  readonly hits: readonly Hit[] = $derived(
    this.responses.flatMap((response) =>
      response.passes
        .slice(0, 1)
        .flatMap((pass) => (this.#found.get(pass.key) ?? []).map(([token, end]) => ({ pass: pass.key, token, end }))),
    ),
  );

  marks(pass: Pass): Uint8Array {
    const { brush } = selection;
    return marksOf(
      pass.tokens?.n ?? 0,
      pass.measured ? resultOf(this.analysis, pass) : null,
      brush ? (picks(brush, pass, this.analysis) ?? (() => false)) : null,
      this.#found.get(pass.key) ?? [],
      this.changed.get(pass.key) ?? [],
    );
  }

  /** How many tokens of the group the brush picks, and of how many. */
  readonly brushed: { picked: number; of: number } | null = $derived.by(() => {
    const { brush } = selection;
    if (!brush || !this.group) return null;
    let picked = 0;
    let of = 0;
    for (const pass of this.group.passes) {
      const n = pass.tokens?.n ?? 0;
      const inside = picks(brush, pass, this.analysis);
      of += n;
      for (let i = 0; inside && i < n; i++) if (inside(i)) picked++;
    }
    return { picked, of };
  });

  /** Another channel; a locked scale is locked again, at what that channel reaches here. */
  pick(name: string): void {
    selection.channel = name;
    if (selection.over === "run") this.lock();
  }

  /** Keeps the scale as it is now, whatever group or update is looked at. */
  lock(): void {
    selection.channel = this.name;
    selection.over = "update";
    selection.reach = this.scale?.reach ?? null;
    selection.over = "run";
  }
}

export const lens = new Lens();
