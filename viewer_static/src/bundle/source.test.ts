import { describe, expect, it } from "vitest";

import { filesByPath, folderSource } from "./source";

function files(...paths: string[]): Map<string, File> {
  return new Map(paths.map((path) => [path, new File([path], path)]));
}

describe("folderSource", () => {
  it("finds the bundle inside what was dropped", async () => {
    const source = folderSource(files("runs/demo/manifest.json", "runs/demo/index.r0.jsonl", "runs/demo/copy/old/manifest.json"));
    expect(source.name).toBe("demo");
    expect(new TextDecoder().decode((await source.read("index.r0.jsonl")) ?? undefined)).toBe("runs/demo/index.r0.jsonl");
    expect(await source.read("metrics.r0.jsonl")).toBeNull();
  });

  it("opens a bundle's files without their folder", async () => {
    const source = folderSource(filesByPath(files("manifest.json", "index.r0.jsonl").values()));
    expect(await source.read("manifest.json")).not.toBeNull();
  });

  it("says what to do where there is no bundle, or several", () => {
    expect(() => folderSource(files("a/readme.md"))).toThrow("There is no manifest.json in what you chose");
    expect(() => folderSource(files("a/x/manifest.json", "a/y/manifest.json"))).toThrow("There are 2 bundles");
  });
});
