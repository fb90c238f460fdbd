/**
 * What the page shows, as the URL's hash, so that a link opens the same place:
 * `#run=b&u=12&g=3.5&r=0.7&t=41&ch=entropies&vs=dapo&what=gspo;bounds.epsilon_high=0.28`. `u=e2` is an evaluation.
 * Nothing in it is trusted: what cannot be read is as good as absent.
 */
import type { Kind } from "../bundle/types";

export type Shape = "radial" | "linear";
/** Over what the colour scale is set: the open group, the whole update, or the update it was locked at. */
export type ScaleOver = "group" | "update" | "run";
export type Sort = "reward" | "order" | "length" | "advantage" | "push" | "clipped";
export type Filter = "all" | "trained" | "clipped" | "positive" | "negative" | "changed";
export type View = "training" | "step" | "algorithm";

/** An algorithm with other hyper-parameters: `changes` are by path, as `withHyperParameters` takes them. */
export interface WhatIf {
  id: string;
  changes: Readonly<Record<string, unknown>>;
}

/** Values of a channel that are picked out, both ends included. */
export interface Brush {
  channel: string;
  low: number;
  high: number;
}

export interface Place {
  /** Name of the opened run, where there are several. */
  run: string | null;
  kind: Kind;
  update: number | null;
  group: string | null;
  pass: string | null;
  token: number | null;
  channel: string | null;
  shape: Shape;
  /** Metrics on the chart; `null` for those it starts with. */
  metrics: readonly string[] | null;
  /** Id of the algorithm beside the run's. */
  versus: string | null;
  what: WhatIf | null;
  brush: Brush | null;
  over: ScaleOver;
  /** The far end of a scale that is locked for the run; `null` where it is not. */
  reach: number | null;
  /** Values relative to their response's mean. */
  relative: boolean;
  /** Text with its LaTeX and Markdown rendered, not coloured token by token. */
  rendered: boolean;
  sort: Sort;
  filter: Filter;
  find: string;
  /** Beat of learning mode, from 1; 0 while it is off. */
  learn: number;
  /** Which view a phone shows. */
  view: View;
}

export const NOWHERE: Place = {
  run: null,
  kind: "train",
  update: null,
  group: null,
  pass: null,
  token: null,
  channel: null,
  shape: "radial",
  metrics: null,
  versus: null,
  what: null,
  brush: null,
  over: "group",
  reach: null,
  relative: false,
  rendered: false,
  sort: "reward",
  filter: "all",
  find: "",
  learn: 0,
  view: "step",
};

const SHAPES: readonly Shape[] = ["radial", "linear"];
const OVER: readonly ScaleOver[] = ["group", "update", "run"];
const SORTS: readonly Sort[] = ["reward", "order", "length", "advantage", "push", "clipped"];
const FILTERS: readonly Filter[] = ["all", "trained", "clipped", "positive", "negative", "changed"];
const VIEWS: readonly View[] = ["training", "step", "algorithm"];

export function parseHash(hash: string): Place {
  const params = new URLSearchParams(hash.replace(/^#/, ""));
  const u = /^(e?)(\d{1,9})$/.exec(params.get("u") ?? "");
  return {
    run: params.get("run"),
    kind: u?.[1] ? "eval" : "train",
    update: u ? Number(u[2]) : null,
    group: params.get("g"),
    pass: params.get("r"),
    token: whole(params.get("t")),
    channel: params.get("ch"),
    shape: oneOf(SHAPES, params.get("shape")),
    metrics: params.get("m")?.match(/(?:[^,\\]|\\.)+/g)?.map((name) => name.replace(/\\(.)/g, "$1")) ?? (params.has("m") ? [] : null),
    versus: params.get("vs"),
    what: parseWhatIf(params.get("what")),
    brush: parseBrush(params.get("brush")),
    over: oneOf(OVER, params.get("over")),
    reach: above(params.get("reach")),
    relative: params.get("rel") === "1",
    rendered: params.get("text") === "1",
    sort: oneOf(SORTS, params.get("sort")),
    filter: oneOf(FILTERS, params.get("only")),
    find: params.get("find") ?? "",
    learn: whole(params.get("learn")) ?? 0,
    view: VIEWS.find((view) => view === params.get("view")) ?? NOWHERE.view,
  };
}

export function formatHash(place: Place): string {
  const params = new URLSearchParams();
  const set = (name: string, value: string | number | null) => {
    if (value !== null && value !== "") params.set(name, String(value));
  };
  set("run", place.run);
  if (place.update !== null) set("u", (place.kind === "eval" ? "e" : "") + place.update);
  set("g", place.group);
  if (place.pass !== null && place.token !== null) {
    set("r", place.pass);
    set("t", place.token);
  }
  set("ch", place.channel);
  if (place.shape !== NOWHERE.shape) set("shape", place.shape);
  // None at all is a choice too, and a name may hold a comma.
  if (place.metrics) params.set("m", place.metrics.map((name) => name.replaceAll("\\", "\\\\").replaceAll(",", "\\,")).join(","));
  set("vs", place.versus);
  if (place.what) set("what", formatWhatIf(place.what));
  if (place.brush) set("brush", `${place.brush.channel};${place.brush.low};${place.brush.high}`);
  if (place.over !== NOWHERE.over) set("over", place.over);
  if (place.over === "run") set("reach", place.reach);
  if (place.relative) set("rel", 1);
  if (place.rendered) set("text", 1);
  if (place.sort !== NOWHERE.sort) set("sort", place.sort);
  if (place.filter !== NOWHERE.filter) set("only", place.filter);
  set("find", place.find);
  if (place.learn) set("learn", place.learn);
  if (place.view !== NOWHERE.view) set("view", place.view);
  const text = params.toString();
  return text ? `#${text}` : "";
}

function formatWhatIf({ id, changes }: WhatIf): string {
  return [id, ...Object.entries(changes).map(([path, value]) => `${path}=${JSON.stringify(value)}`)].join(";");
}

function parseWhatIf(text: string | null): WhatIf | null {
  const [id, ...rest] = text?.split(";") ?? [];
  if (!id) return null;
  const changes: [string, unknown][] = [];
  for (const item of rest) {
    const at = item.indexOf("=");
    if (at < 1) continue;
    try {
      changes.push([item.slice(0, at), JSON.parse(item.slice(at + 1))]);
    } catch {
      // Cut short on its way: the rest still says something.
    }
  }
  return { id, changes: Object.fromEntries(changes) };
}

function parseBrush(text: string | null): Brush | null {
  const [channel, low, high] = text?.split(";") ?? [];
  if (!channel || low === undefined || high === undefined) return null;
  const ends = [Number(low), Number(high)] as const;
  return ends.some(Number.isNaN) ? null : { channel, low: ends[0], high: ends[1] };
}

function whole(text: string | null): number | null {
  return text !== null && /^\d{1,9}$/.test(text) ? Number(text) : null;
}

/** A finite number above 0: another would turn a scale round. */
function above(text: string | null): number | null {
  const value = Number(text ?? NaN);
  return Number.isFinite(value) && value > 0 ? value : null;
}

/** The value where it is one of these, else the first. */
function oneOf<T extends string>(values: readonly T[], text: string | null): T {
  return values.find((value) => value === text) ?? (values[0] as T);
}
