import { afterEach, describe, expect, it, vi } from "vitest";

import { bundleFolders, filesByPath, listedBundles, MOST_BUNDLES } from "./source";

function files(...paths: string[]): Map<string, File> {
  return new Map(paths.map((path) => [path, new File([path], path)]));
}

const bundle = (folder: string) => [`${folder}/manifest.json`, `${folder}/index.r0.jsonl`];
const names = (found: ReturnType<typeof bundleFolders>) => found.sources.map((source) => source.name);

describe("bundleFolders", () => {
  it("finds the bundle inside what was dropped, and not the copy inside it", async () => {
    const found = bundleFolders(files(...bundle("runs/demo"), "runs/demo/copy/old/manifest.json"));
    expect(names(found)).toEqual(["demo"]);
    const [source] = found.sources;
    expect(new TextDecoder().decode((await source?.read("index.r0.jsonl")) ?? undefined)).toBe("runs/demo/index.r0.jsonl");
    expect(await source?.read("metrics.r0.jsonl")).toBeNull();
  });

  it("opens a bundle's files without their folder", async () => {
    const [source] = bundleFolders(filesByPath(files("manifest.json", "index.r0.jsonl").values())).sources;
    expect(await source?.read("manifest.json")).not.toBeNull();
  });

  it("says what to do where there is no bundle", () => {
    expect(() => bundleFolders(files("a/readme.md"))).toThrow("There is no manifest.json in what you chose");
  });

  it("finds several, at any depth, each with its own files", async () => {
    const found = bundleFolders(files(...bundle("runs/b"), ...bundle("runs/a10"), ...bundle("runs/a9"), ...bundle("runs/old/x/c")));
    expect(names(found)).toEqual(["a9", "a10", "b", "c"]);
    expect(new TextDecoder().decode((await found.sources[3]?.read("manifest.json")) ?? undefined)).toBe("runs/old/x/c/manifest.json");
  });

  it("tells bundles of the same name apart by the folders they lie in", () => {
    expect(names(bundleFolders(files(...bundle("x/grpo/unipo"), ...bundle("x/dapo/unipo"), ...bundle("x/gspo"))))).toEqual([
      "gspo", "dapo/unipo", "grpo/unipo",
    ]);
    expect(names(bundleFolders(files(...bundle("one/a/unipo"), ...bundle("two/a/unipo"), ...bundle("unipo"))))).toEqual([
      "unipo", "one/a/unipo", "two/a/unipo",
    ]);
  });

  it("leaves manifests of other programs out where there are runs", () => {
    expect(names(bundleFolders(files(...bundle("x/run"), "x/extension/manifest.json")))).toEqual(["run"]);
  });

  it("opens no more than a page can hold, and says how many there are", () => {
    const found = bundleFolders(files(...Array.from({ length: MOST_BUNDLES + 5 }, (_, i) => bundle(`runs/${i}`)).flat()));
    expect([found.sources.length, found.all]).toEqual([MOST_BUNDLES, MOST_BUNDLES + 5]);
  });
});

describe("listedBundles", () => {
  const BASE = "http://host/viewer/";
  const listed = (...bundles: unknown[]) => listedBundles(JSON.stringify({ bundles }), BASE);
  afterEach(() => vi.unstubAllGlobals());

  it("takes names and folders inside the page's own", async () => {
    const asked: string[] = [];
    vi.stubGlobal("fetch", async (url: URL) => {
      asked.push(url.href);
      return new Response("{}");
    });
    const found = listed({ name: "one", path: "a/" }, { path: "deep/b c#?%2e" }, { name: " ", path: "javascript:x" });
    expect(found.sources.map((source) => source.name)).toEqual(["one", "deep/b c#?%2e", "javascript:x"]);
    for (const source of found.sources) await source.read("manifest.json");
    expect(asked).toEqual([
      "http://host/viewer/a/manifest.json",
      "http://host/viewer/deep/b%20c%23%3F%252e/manifest.json",
      "http://host/viewer/javascript%3Ax/manifest.json",
    ]);
  });

  it("follows no path that leads elsewhere", () => {
    const hostile = [
      "", "/", "/etc/", "../other/", "a/../../b/", "a/./b", "a//b", "//host/", "http://evil.example/", "..\\b", "a\nb", "\ud800", 3, null, {},
    ];
    expect(listed(...hostile.map((path) => ({ name: "x", path })), "a", null, 1).sources).toEqual([]);
  });

  it("says what is wrong with a list that is none", () => {
    for (const text of ["", "[]", "null", '{"bundles": {}}', "<html>"]) {
      expect(() => listedBundles(text, BASE)).toThrow("it is not a list of bundles");
    }
  });

  it("opens no more than a page can hold", () => {
    const found = listed(...Array.from({ length: 300 }, (_, i) => ({ name: `r${i}`, path: `r${i}/` })));
    expect([found.sources.length, found.all]).toEqual([MOST_BUNDLES, 300]);
  });
});
