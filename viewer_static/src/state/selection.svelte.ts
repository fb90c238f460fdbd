/** What is picked: update, group, token, channel. Lives in the URL's hash too, so that a link opens the same place. */
import type { Kind } from "../bundle/types";
import { formatHash, parseHash, type Place } from "./hash";

export interface TokenRef {
  /** Key of the pass the token belongs to: that of its response, but for further passes. */
  pass: string;
  token: number;
}

class Selection implements Place {
  kind = $state<Kind>("train");
  update = $state<number | null>(null);
  group = $state<string | null>(null);
  pass = $state<string | null>(null);
  token = $state<number | null>(null);
  channel = $state<string | null>(null);
  /** The channel that coloured the first tokens shown: it stays until the person picks one. No part of a link. */
  firstChannel = $state<string | null>(null);
  /** Whether the newest update is opened as soon as it is there. */
  follow = $state(false);
  hovered = $state.raw<TokenRef | null>(null);

  get selected(): TokenRef | null {
    return this.pass !== null && this.token !== null ? { pass: this.pass, token: this.token } : null;
  }

  /** A person's own choice of update; who looks back no longer follows. */
  openUpdate(kind: Kind, update: number): void {
    this.follow = false;
    this.show(kind, update);
  }

  show(kind: Kind, update: number): void {
    if (kind === this.kind && update === this.update) return;
    this.kind = kind;
    this.update = update;
    this.clearToken();
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

  readHash(): void {
    try {
      const place = parseHash(location.hash);
      this.kind = place.kind;
      this.update = place.update;
      this.group = place.group;
      this.pass = place.pass;
      this.token = place.token;
      this.channel = place.channel;
    } catch {
      // A sandboxed frame may forbid it; the page works without.
    }
  }

  /** Writes the place into the URL; `group` is the one that is shown, as far as it was chosen. */
  writeHash(group: string | null): void {
    const { kind, update, pass, token, channel } = this;
    const hash = formatHash({ kind, update, group, pass, token, channel });
    try {
      if (location.hash !== hash && (hash || location.hash)) history.replaceState(null, "", hash || "#");
    } catch {
      // As above.
    }
  }
}

export const selection = new Selection();
