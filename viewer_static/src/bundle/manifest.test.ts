import { describe, expect, it } from "vitest";

import { ManifestError, ofAllRanks, parseManifest } from "./manifest";

const BASE = { format: "unipo-bundle", version: "1.0", status: "finished", header: { algorithm: "grpo" }, trainer: {}, attempts: [] };

describe("parseManifest", () => {
  it("fills in what is missing and ignores what it does not know", () => {
    const manifest = parseManifest(JSON.stringify({ ...BASE, version: "1.7", new_field: { a: 1 } }));
    expect(manifest).toMatchObject({ version: "1.7", ranks: 1, channels: [], reward_names: [] });
    expect(manifest.header).toMatchObject({ algorithm: "grpo", model_name: "", totalSteps: null });
  });

  it("names both versions where the bundle is newer", () => {
    expect(() => parseManifest(JSON.stringify({ ...BASE, version: "2.0" }))).toThrow(
      "This bundle has format 2.0, this viewer reads 1.x: update unipo-hooks.",
    );
  });

  it("refuses a version that is no text", () => {
    for (const version of [9, null, 1, ["1.0"]]) {
      expect(() => parseManifest(JSON.stringify({ ...BASE, version }))).toThrow("no readable format version");
    }
  });

  it("refuses other JSON, and text that is none", () => {
    expect(() => parseManifest('{"name":"package"}')).toThrow(ManifestError);
    expect(() => parseManifest('{"format": "unipo')).toThrow(ManifestError);
    expect(() => parseManifest("[]")).toThrow(ManifestError);
  });
});

describe("ofAllRanks", () => {
  const manifest = parseManifest(
    JSON.stringify({ ...BASE, created: "now", ranks: 3, channels: ["ids"], lost: { updates: 1 }, attempts: [{ attempt: 0 }] }),
  );
  const said = (more: object) => JSON.stringify({ created: "now", attempt: 0, status: "finished", ...more });

  it("adds tokens and channels of other ranks; updates that several lost are the same ones", () => {
    const lost = { updates: 2, rollouts: 1, tokens: 7, reason: "the queue was full" };
    const all = ofAllRanks(manifest, [said({ lost: { updates: 2, tokens: 5 } }), said({ lost, channels: ["ids", "entropies"] })]);
    expect(all.lost).toEqual({ rollouts: 1, updates: 2, evaluations: 0, tokens: 12, reason: "rank 2: the queue was full" });
    expect(all.channels).toEqual(["ids", "entropies"]);
    expect(manifest.lost.updates).toBe(1);
  });

  it("says that a run goes on while any rank of its newest attempt does", () => {
    expect(ofAllRanks(manifest, [said({ status: "running" }), said({})]).status).toBe("running");
    expect(ofAllRanks(manifest, [said({ status: "interrupted" })]).status).toBe("interrupted");
    expect(ofAllRanks(manifest, [said({ status: "running", attempt: 7 })]).status).toBe("finished");
  });

  it("passes over what another run left, and what is none", () => {
    expect(ofAllRanks(manifest, [said({ created: "before", lost: { updates: 9 } }), "{"])).toEqual(manifest);
  });
});
