import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { describe, expect, it } from "vitest";

/** Layer → what it may know, itself aside. `base` are the files beside this one: words, numbers, colours. */
const MAY_KNOW: Readonly<Record<string, readonly string[]>> = {
  objective: [],
  bundle: [],
  base: ["bundle", "objective"],
  analysis: ["base", "bundle", "objective"],
  state: ["base", "bundle", "objective", "analysis"],
  views: [],
  "views/shell": ["base", "bundle", "state", "views", "analysis"],
  "views/explorer": ["base", "bundle", "state", "views"],
  "views/inspector": ["base", "bundle", "state", "views", "analysis", "objective"],
  "views/explainer": ["base", "bundle", "state", "views", "analysis", "objective"],
  "views/learn": ["base", "bundle", "state", "views", "analysis", "objective"],
};
/** Files on top, which know everything. */
const TOP = ["App.svelte", "main.ts", "arrows.test.ts"];

const root = import.meta.dirname;
const files = readdirSync(root, { recursive: true, encoding: "utf8" }).filter((f) => /\.(ts|svelte)$/.test(f) && !TOP.includes(f));

function layer(file: string): string {
  const folder = dirname(file);
  const known = Object.keys(MAY_KNOW).sort((a, b) => b.length - a.length);
  return known.find((name) => folder === name || folder.startsWith(`${name}/`)) ?? "base";
}

describe("arrows go one way", () => {
  it.each(files)("%s", (file) => {
    const source = readFileSync(join(root, file), "utf8");
    const wrong = [...source.matchAll(/from\s+"(\.[^"]*)"|import\s+"(\.[^"]*)"/g)]
      .map((match) => relative(root, resolve(root, dirname(file), match[1] ?? match[2] ?? "")))
      .filter((target) => !target.startsWith(".."))
      .map((target) => (target in MAY_KNOW ? target : layer(target)))
      .filter((target) => target !== layer(file) && !MAY_KNOW[layer(file)]?.includes(target));
    expect(wrong).toEqual([]);
  });
});
