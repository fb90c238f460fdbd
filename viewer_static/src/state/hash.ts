/** What the page shows, as the URL's hash: `#u=12&g=3.5&r=0.7&t=41&ch=entropies`; `u=e2` is an evaluation. */
import type { Kind } from "../bundle/types";

export interface Place {
  kind: Kind;
  update: number | null;
  group: string | null;
  pass: string | null;
  token: number | null;
  channel: string | null;
}

export function parseHash(hash: string): Place {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const u = /^(e?)(\d{1,9})$/.exec(params.get("u") ?? "");
  const t = /^\d{1,9}$/.exec(params.get("t") ?? "");
  return {
    kind: u?.[1] ? "eval" : "train",
    update: u ? Number(u[2]) : null,
    group: params.get("g"),
    pass: params.get("r"),
    token: t ? Number(t[0]) : null,
    channel: params.get("ch"),
  };
}

export function formatHash(place: Place): string {
  const params = new URLSearchParams();
  if (place.update !== null) params.set("u", (place.kind === "eval" ? "e" : "") + place.update);
  if (place.group !== null) params.set("g", place.group);
  if (place.pass !== null && place.token !== null) {
    params.set("r", place.pass);
    params.set("t", String(place.token));
  }
  if (place.channel !== null) params.set("ch", place.channel);
  const text = params.toString();
  return text ? `#${text}` : "";
}
