/** What is picked: run, update, group, token, channel, algorithm. Lives in the URL's hash, so that a link opens the same place. */
import type { Kind } from "../bundle/types";
import type { Focus } from "../links";
import {
  type Brush, type Filter, formatHash, NOWHERE, parseHash, type Place, type ScaleOver, type Shape, type Sort, type View, type WhatIf,
} from "./hash";

export interface TokenRef {
  /** Key of the pass the token belongs to: that of its response, but for further passes. */
  pass: string;
  token: number;
}

class Selection implements Place {
  run = $state<string | null>(null);
  kind = $state<Kind>("train");
  update = $state<number | null>(null);
  group = $state<string | null>(null);
  pass = $state<string | null>(null);
  token = $state<number | null>(null);
  channel = $state<string | null>(null);
  shape = $state<Shape>(NOWHERE.shape);
  metrics = $state.raw<readonly string[] | null>(null);
  versus = $state<string | null>(null);
  what = $state.raw<WhatIf | null>(null);
  brush = $state.raw<Brush | null>(null);
  over = $state<ScaleOver>(NOWHERE.over);
  reach = $state<number | null>(null);
  relative = $state(false);
  rendered = $state(false);
  sort = $state<Sort>(NOWHERE.sort);
  filter = $state<Filter>(NOWHERE.filter);
  find = $state("");
  learn = $state(0);
  view = $state<View>(NOWHERE.view);

  /** The channel that coloured the first tokens shown: it stays until the person picks one. No part of a link. */
  firstChannel = $state<string | null>(null);
  /** Whether the newest update is opened as soon as it is there. */
  follow = $state(false);
  hovered = $state.raw<TokenRef | null>(null);
  /** The update that is pointed at on a chart. */
  hoveredUpdate = $state<number | null>(null);
  #stop: string | null = null;

  /** The metric, slot or channel that is pointed at or picked: its counterparts in the other panes are lit. */
  focus = $state.raw<Focus | null>(null);

  get selected(): TokenRef | null {
    return this.pass !== null && this.token !== null ? { pass: this.pass, token: this.token } : null;
  }

  /** A person's own choice of update; who looks back no longer follows. `keepToken` where it holds the same responses. */
  openUpdate(kind: Kind, update: number, keepToken = false): void {
    this.follow = false;
    this.show(kind, update, keepToken);
  }

  show(kind: Kind, update: number, keepToken = false): void {
    if (kind === this.kind && update === this.update) return;
    this.kind = kind;
    this.update = update;
    if (keepToken) this.hovered = null;
    else this.clearToken();
  }

  openGroup(group: string): void {
    this.group = group;
    this.clearToken();
  }

  /** Picks a token of the group that is shown: from here on the group is a choice too. */
  select(ref: TokenRef, group: string): void {
    this.group = group;
    this.pass = ref.pass;
    this.token = ref.token;
  }

  clearToken(): void {
    this.pass = null;
    this.token = null;
    this.hovered = null;
  }

  /** Forgets the place in a run, as another one is opened; how things are looked at stays. */
  leaveRun(): void {
    this.kind = "train";
    this.update = null;
    this.group = null;
    this.follow = false;
    this.firstChannel = null;
    this.brush = null;
    this.reach = null;
    if (this.over === "run") this.over = "group";
    this.hoveredUpdate = null;
    this.clearToken();
  }

  readHash(): void {
    try {
      Object.assign(this, parseHash(location.hash));
    } catch {
      // A sandboxed frame may forbid it; the page works without.
    }
  }

  /**
   * Writes the place into the URL; `group` is the one that is shown, as far as it was chosen. What a person would want
   * to come back to is a step of the browser's history: another run, update, algorithm, or the lesson.
   */
  writeHash(group: string | null): void {
    const { place } = this;
    const hash = formatHash({ ...place, group });
    const stop = [place.run, place.kind, place.update, place.versus, place.what?.id ?? null, place.learn > 0].join("\n");
    const step = place.update !== null && this.#stop !== null && stop !== this.#stop && !this.follow;
    try {
      if (location.hash !== hash && (hash || location.hash)) {
        if (step) history.pushState(null, "", hash || "#");
        else history.replaceState(null, "", hash || "#");
      }
    } catch {
      // As above.
    }
    // Before the first update is there the page is on its way, not at a place.
    if (place.update !== null) this.#stop = stop;
  }

  get place(): Place {
    const { run, kind, update, group, pass, token, channel, shape, metrics, versus, what, brush, over, reach } = this;
    const { relative, rendered, sort, filter, find, learn, view } = this;
    return {
      run, kind, update, group, pass, token, channel, shape, metrics, versus, what, brush, over, reach, relative,
      rendered, sort, filter, find, learn, view,
    };
  }
}

export const selection = new Selection();
