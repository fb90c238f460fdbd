import { describe, expect, it } from "vitest";

import { ManifestError, parseManifest } from "./manifest";

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

  it("refuses other JSON, and text that is none", () => {
    expect(() => parseManifest('{"name":"package"}')).toThrow(ManifestError);
    expect(() => parseManifest('{"format": "unipo')).toThrow(ManifestError);
    expect(() => parseManifest("[]")).toThrow(ManifestError);
  });
});
