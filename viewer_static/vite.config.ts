import { createHash } from "node:crypto";

import { svelte } from "@sveltejs/vite-plugin-svelte";
import type { Plugin } from "vite";
import { viteSingleFile } from "vite-plugin-singlefile";
import { defineConfig } from "vitest/config";

/** Where `unipo-hooks export` puts the bundle's files: right before the end of the body, once in the page. */
const MARKER = "<!--unipo-bundle-->";

/**
 * Writes the Content-Security-Policy into the finished page: the one inlined script, known by its hash, may run, and
 * nothing may be fetched but from the page's own origin. Fails the build where the page could not be trusted.
 */
function contentSecurityPolicy(): Plugin {
  return {
    name: "unipo-content-security-policy",
    apply: "build",
    enforce: "post",
    generateBundle: {
      order: "post",
      handler(_options, bundle) {
        const page = bundle["index.html"];
        if (page?.type !== "asset") this.error("index.html is not in the bundle");
        const html = String(page.source);
        const scripts = [...html.matchAll(/<script\b[^>]*>([\s\S]*?)<\/script>/g)];
        if (scripts.length !== 1) this.error(`the page should hold one script, it holds ${scripts.length}`);
        const code = scripts[0]?.[1] ?? "";
        if (/<!--|<script/i.test(code)) this.error("the script holds a literal that ends or comments out a script");
        if (html.split(MARKER).length !== 2) this.error(`the page should hold ${MARKER} once`);
        const hash = createHash("sha256").update(code).digest("base64");
        const policy = [
          "default-src 'none'",
          `script-src 'sha256-${hash}'`,
          "style-src 'unsafe-inline'",
          "img-src data:",
          "connect-src 'self'",
          "base-uri 'none'",
          "form-action 'none'",
        ].join("; ");
        const meta = `<meta http-equiv="Content-Security-Policy" content="${policy}" />`;
        const charset = '<meta charset="utf-8" />';
        if (!html.includes(charset)) this.error(`the page should hold ${charset}`);
        page.source = html.replace(charset, () => `${charset}\n    ${meta}`);
      },
    },
  };
}

export default defineConfig({
  plugins: [svelte(), viteSingleFile({ removeViteModuleLoader: true }), contentSecurityPolicy()],
  base: "./",
  build: { target: "es2022", modulePreload: false, reportCompressedSize: true },
  test: { include: ["src/**/*.test.ts"], environment: "node" },
});
