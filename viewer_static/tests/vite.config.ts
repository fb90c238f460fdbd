/** Bundles tests/analysis.ts for Node: `vite build --config tests/vite.config.ts --outDir FOLDER`. */
import { fileURLToPath } from "node:url";

import { defineConfig } from "vite";

export default defineConfig({
  build: { ssr: fileURLToPath(new URL("analysis.ts", import.meta.url)), target: "node20", emptyOutDir: false },
  ssr: { noExternal: true },
});
