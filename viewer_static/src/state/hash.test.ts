import { describe, expect, it } from "vitest";

import { formatHash, parseHash, type Place } from "./hash";

describe("the URL's hash", () => {
  it("comes back as it went", () => {
    const place: Place = { kind: "train", update: 12, group: "3.5", pass: "0.7", token: 41, channel: "entropies" };
    expect(formatHash(place)).toBe("#u=12&g=3.5&r=0.7&t=41&ch=entropies");
    expect(parseHash(formatHash(place))).toEqual(place);
    expect(parseHash(formatHash({ ...place, kind: "eval" }))).toEqual({ ...place, kind: "eval" });
  });

  it("is empty where nothing was picked, and takes nonsense for nothing", () => {
    const nothing: Place = { kind: "train", update: null, group: null, pass: null, token: null, channel: null };
    expect(formatHash(nothing)).toBe("");
    expect(parseHash("")).toEqual(nothing);
    expect(parseHash("#u=-1&t=x1")).toEqual(nothing);
    expect(parseHash("#u=1e99999999999&t=99999999999999999999")).toEqual(nothing);
  });
});
