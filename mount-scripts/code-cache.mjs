// Programs that start with what V8 made of their text when they were built: a third of the time until a mount is ready
// was spent on compiling. NAME.js becomes a loader of NAME.bundle.js and NAME.ARCHITECTURE.cache; the latter is used if it
// is of the same V8 with the same flags, and else does no harm. V8 does not look whether it is of the same architecture.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const RECORDING_MS = 60_000;

/**
 * What the loader of a program does for some commands only: a V8 whose version begins with `v8`, and knows them, gets
 * options before it loads the text; what it made of that with other options is of no use to it then.
 *
 * @typedef {{ name: string, commands: readonly string[], v8: string, options: string }} Variant
 */

/**
 * The loader of a program; `recording`: it writes the cache when the program ends.
 *
 * @param {string} name
 * @param {Variant | undefined} variant
 * @param {boolean} recording
 */
function loader(name, variant, recording) {
  const base = `require("node:path").join(__dirname, ${JSON.stringify(name)})`;
  const suffix = variant === undefined ? "" : `\${variant}`;
  const choice =
    variant === undefined
      ? ""
      : `
const isVariant = ${JSON.stringify(variant.commands)}.includes(process.argv[2]) &&
  process.versions.v8.startsWith(${JSON.stringify(variant.v8)});
if (isVariant) require("node:v8").setFlagsFromString(${JSON.stringify(variant.options)});
const variant = isVariant ? ${JSON.stringify(`-${variant.name}`)} : "";`;
  const record = `
const { isMainThread } = require("node:worker_threads");
const mark = \`\${base}.recording\`;
if (!isMainThread) fs.writeFileSync(mark, "");
const othersRecord = () => isMainThread && fs.readdirSync(__dirname).some((name) => name.endsWith(".recording"));
process.once("exit", () => {
  fs.writeFileSync(\`\${cache}.new\`, script.createCachedData());
  fs.renameSync(\`\${cache}.new\`, cache);
  fs.rmSync(mark, { force: true });
  // Threads that have come to their end may be ended with the process.
  const nobody = new Int32Array(new SharedArrayBuffer(4));
  for (let wait = 0; wait < ${RECORDING_MS / 10} && othersRecord(); wait++) Atomics.wait(nobody, 0, 0, 10);
});`;
  return `#!/usr/bin/env node
"use strict";
const fs = require("node:fs");
const { Script } = require("node:vm");
const base = ${base};${choice}
const cache = \`\${base}${suffix}.\${process.arch}.cache\`;
const filename = \`\${base}.bundle.js\`;
// ASCII: one byte a character, which is faster to read.
const source = fs.readFileSync(filename, "latin1");
let cachedData;
try {
  cachedData = fs.readFileSync(cache);
} catch {}
const script = new Script(source, { filename, cachedData });
// --verbose tells.
if (script.cachedDataRejected) globalThis[Symbol.for("tsimgfs.codeCache")] = "refused";${recording ? record : ""}
script.runInThisContext()(exports, require, module, __filename, __dirname);
`;
}

/**
 * @param {string} directory of the programs
 * @param {readonly { path: string, variant?: Variant }[]} programs paths without .js; the first one starts the others
 * @param {readonly (readonly string[])[]} commandLines of the first program: each adds to the caches what it compiles
 */
export async function addCodeCaches(directory, programs, commandLines) {
  const writeLoaders = (recording) => {
    for (const { path, variant } of programs) {
      writeFileSync(
        `${directory}/${path}.js`,
        loader(path.replace(/.*\//, ""), variant, recording),
      );
    }
  };
  for (const { path } of programs) {
    const program = `${directory}/${path}`;
    renameSync(`${program}.js`, `${program}.bundle.js`);
    const text = readFileSync(`${program}.bundle.js`, "latin1").replace(/^#!.*/, "");
    // As Node wraps modules; not when it is loaded, since that copies all of it.
    const wrapped = `(function (exports, require, module, __filename, __dirname) {${text}\n})`;
    writeFileSync(`${program}.bundle.js`, wrapped, "latin1");
  }
  writeLoaders(true);
  const [{ path: first }] = programs;
  for (const args of commandLines) {
    const { status, stderr } = spawnSync(process.execPath, [`${directory}/${first}.js`, ...args], {
      encoding: "utf8",
    });
    if (status !== 0) throw new Error(`${first} ${args[0]} failed: ${stderr}`);
  }
  const end = Date.now() + RECORDING_MS;
  for (const { path, variant } of programs) {
    for (const name of variant === undefined ? [path] : [path, `${path}-${variant.name}`]) {
      while (!existsSync(`${directory}/${name}.${process.arch}.cache`)) {
        if (Date.now() > end) throw new Error(`${name} made no code cache`);
        await sleep(10);
      }
    }
  }
  writeLoaders(false);
}
