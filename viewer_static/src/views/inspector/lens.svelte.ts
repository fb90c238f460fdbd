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
import { findText, MOST_HITS } from "./find";
import { knownChannels } from "./group";
import { marksOf } from "./marks";
import { pickedOf, picks } from "./queries";
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
  /** Reach of the run's own algorithm where a what-if is on: on one scale, a weaker push is seen to be weaker. */
  readonly #ownReach: number = $derived.by(() => {
    const { group, channel, name } = this;
    const { own } = analysis;
    if (!selection.what || !group || !channel || !name || !LESSONS.has(name) || !own || own.missing || !this.analysis || this.analysis.own) return 0;
    const groups = selection.over === "group" ? [group] : (open.step?.groups ?? []);
    return scaleOf(channel, samples(groups.flatMap((each) => [...scalePasses(each)]), (pass) => this.#valuesOf(pass, own))).reach;
  });
  /** Whether the scale is that of the run's own algorithm, and another is looked at. */
  readonly kept: boolean = $derived(this.#ownReach > 0 && !this.locked);
  /** The scale that colours the tokens; counts and extremes are the group's. */
  readonly scale: Scale | null = $derived(
    this.#free && (this.locked || this.kept)
      ? withReach(this.#free, this.locked ? (selection.reach ?? 0) : this.#ownReach)
      : this.#free,
  );

  get locked(): boolean {
    return selection.over === "run" && selection.reach !== null && this.name === this.wanted && this.channel?.limit === undefined;
  }

  /** Values of the channel, as it is looked at. */
  values(pass: Pass): Values | null {
    return this.#valuesOf(pass, this.analysis);
  }

  #valuesOf(pass: Pass, of: Analysis | null): Values | null {
    if (this.name === null || !pass.tokens) return null;
    const values = channelValues(pass, this.name, of);
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
  /** What is looked for in reading order, of the responses that are shown: text, else the picked tokens. */
  readonly hits: readonly Hit[] = $derived(selection.find ? this.#foundHits() : this.#pickedHits());

  #foundHits(): Hit[] {
    return this.responses.flatMap((response) =>
      response.passes
        .slice(0, 1)
        .flatMap((pass) => (this.#found.get(pass.key) ?? []).map(([token, end]) => ({ pass: pass.key, token, end }))),
    );
  }

  #pickedHits(): Hit[] {
    const { brush } = selection;
    if (!brush) return [];
    return this.responses
      .flatMap((response) => response.passes)
      .flatMap((pass) => pickedOf(brush, pass, this.analysis).map((token) => ({ pass: pass.key, token, end: token + 1 })));
  }

  /** Whether there are more than were looked for. */
  readonly more: boolean = $derived([...this.#found.values()].some((ranges) => ranges.length === MOST_HITS));

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

  /** How many tokens the brush picks, by group. */
  readonly pickedByGroup: ReadonlyMap<string, number> = $derived.by(() => {
    const { brush } = selection;
    const groups = brush ? (open.step?.groups ?? []) : [];
    return new Map(
      groups.map((group) => [
        group.key,
        brush ? group.passes.reduce((n, pass) => n + pickedOf(brush, pass, this.analysis).length, 0) : 0,
      ]),
    );
  });

  /** How many tokens of the group the brush picks, of how many, and how many of the update's other groups. */
  readonly brushed: { picked: number; of: number; elsewhere: number } | null = $derived.by(() => {
    if (!selection.brush || !this.group) return null;
    const picked = this.pickedByGroup.get(this.group.key) ?? 0;
    const all = [...this.pickedByGroup.values()].reduce((a, b) => a + b, 0);
    return { picked, of: this.group.passes.reduce((n, pass) => n + (pass.tokens?.n ?? 0), 0), elsewhere: all - picked };
  });

  /** Another channel; a locked scale is locked again, at what that channel reaches here. */
  pick(name: string): void {
    selection.channel = name;
    if (selection.over === "run") this.lock();
  }

  /** Values relative to the response, or as they are; a locked scale is locked again, as those are other values. */
  turnRelative(): void {
    const { locked } = this;
    selection.relative = !selection.relative;
    if (locked) this.lock();
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
