// Build dist/: one file per program (the command, its threads, the daemon, its threads), the library with its types,
// man pages and completions for shells. CommonJS, and the command-line parser included: Node is ready 30 ms sooner than with modules of their own, and
// the library can be imported and required. A failed build leaves dist/ as it was.
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { addCodeCaches } from "./code-cache.mjs";

/** Of the disk that is converted to see what that compiles, bytes. */
const CONVERTED_SIZE = 64 * 1024 * 1024;

/**
 * Commands that copy disks wait for the host most of the time. What they do in between is soon hot enough for V8 to
 * optimize it, on threads that take the processors from those that copy: 60 ms of 700 for a gigabyte. It shall wait
 * for thirty times as much as it does by default (67584 bytes of bytecode).
 */
const COPYING = {
  name: "copying",
  commands: ["convert", "dd"],
  // Of Node 20: later ones have no such option.
  v8: "11.",
  options: "--interrupt-budget=2000000",
};

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
rmSync("build/dist", { recursive: true, force: true });
await build({
  entryPoints: [
    "src/cli/main.ts",
    "src/cli/copy-thread.ts",
    { in: "src/cli/documents/main.ts", out: "cli/documents" },
    "src/daemon/main.ts",
    "src/daemon/io-thread.ts",
    "src/daemon/native-watchdog.ts",
    "src/daemon/upkeep-thread.ts",
    "src/library/main.ts",
  ],
  outbase: "src",
  outdir: "build/dist",
  bundle: true,
  platform: "node",
  target: "node20",
  format: "cjs",
  // Comments and indentation are half of the text, which is read whole at each start. Names stay: stack traces tell.
  minifyWhitespace: true,
  lineLimit: 100,
  // koffi is native; debug is loaded only when DEBUG is set.
  external: ["koffi", "debug"],
  define: { "import.meta.url": "importMetaUrl" },
  banner: { js: 'const importMetaUrl = require("node:url").pathToFileURL(__filename).href;' },
  logLevel: "warning",
});
writeFileSync("build/dist/package.json", `${JSON.stringify({ type: "commonjs" })}\n`);
// Where the programs look for their version.
copyFileSync("package.json", "build/package.json");
// Man pages and completions; what writes them is for nobody else.
execFileSync(process.execPath, ["build/dist/cli/documents.js", "build/dist"], {
  stdio: "inherit",
});
rmSync("build/dist/cli/documents.js");
// Data and zeros, enough for each thread to copy some.
const disk = Buffer.alloc(CONVERTED_SIZE, 0x5a).fill(0, 0, CONVERTED_SIZE / 4);
writeFileSync("build/disk.raw", disk);
await addCodeCaches(
  "build/dist",
  [
    { path: "cli/main", variant: COPYING },
    { path: "cli/copy-thread" },
    { path: "daemon/main" },
    { path: "daemon/io-thread" },
  ],
  [
    // What is asked for is no mount, but by then all that a mount needs is loaded.
    ["mount", "--help"],
    ["convert", "-f", "raw", "-O", "qcow2", "build/disk.raw", "build/disk.qcow2"],
    ["convert", "-f", "qcow2", "-O", "raw", "build/disk.qcow2", "build/disk.raw"],
  ],
);
for (const name of ["disk.raw", "disk.qcow2"]) rmSync(`build/${name}`);
// The compiler writes the declarations of all files. These are those that the library's refer to.
rmSync("build/types", { recursive: true, force: true });
execFileSync("node_modules/.bin/tsc", ["-p", "tsconfig.library.json"], { stdio: "inherit" });
for (const file of ["errors", "library/image", "library/main", "library/open-image"]) {
  const text = readFileSync(`build/types/${file}.d.ts`, "utf8");
  writeFileSync(`build/dist/${file}.d.ts`, text.replace(/(from "\..*)\.ts"/g, '$1.js"'));
}
chmodSync("build/dist/cli/main.js", 0o755);
rmSync("dist", { recursive: true, force: true });
renameSync("build/dist", "dist");
