// Build dist/: one file per program (the command, its threads, the daemon, its I/O threads). CommonJS, and the command-line
// parser included: Node is ready 30 ms sooner than with modules of their own. A failed build leaves dist/ as it was.
import { chmodSync, copyFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { addCodeCaches } from "./code-cache.mjs";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
rmSync("build/dist", { recursive: true, force: true });
await build({
  entryPoints: [
    "src/cli/main.ts",
    "src/cli/copy-thread.ts",
    "src/daemon/main.ts",
    "src/daemon/io-thread.ts",
  ],
  outbase: "src",
  outdir: "build/dist",
  bundle: true,
  platform: "node",
  target: "node20",
  format: "cjs",
  // koffi is native; debug is loaded only when DEBUG is set.
  external: ["koffi", "debug"],
  define: { "import.meta.url": "importMetaUrl" },
  banner: { js: 'const importMetaUrl = require("node:url").pathToFileURL(__filename).href;' },
  logLevel: "warning",
});
writeFileSync("build/dist/package.json", `${JSON.stringify({ type: "commonjs" })}\n`);
// Where the programs look for their version.
copyFileSync("package.json", "build/package.json");
// What is asked for last is no mount, but by then all that a mount needs is loaded.
await addCodeCaches(
  "build/dist",
  ["cli/main", "daemon/main", "daemon/io-thread"],
  ["mount", "--help"],
);
chmodSync("build/dist/cli/main.js", 0o755);
rmSync("dist", { recursive: true, force: true });
renameSync("build/dist", "dist");
