// Programs that start with what V8 made of their text when they were built: a third of the time until a mount is ready
// was spent on compiling. NAME.js becomes a loader of NAME.bundle.js and NAME.ARCHITECTURE.cache; the latter is used if it
// is of the same V8 with the same flags, and else does no harm. V8 does not look whether it is of the same architecture.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const RECORDING_MS = 60_000;

/** The loader of a program; `recording`: it writes the cache when the program ends. */
function loader(name, recording) {
  const record = `
const { isMainThread } = require("node:worker_threads");
const mark = \`\${base}.recording\`;
if (!isMainThread) fs.writeFileSync(mark, "");
const othersRecord = () => isMainThread && fs.readdirSync(__dirname).some((name) => name.endsWith(".recording"));
process.once("exit", () => {
  fs.writeFileSync(\`\${base}.new\`, script.createCachedData());
  fs.renameSync(\`\${base}.new\`, cache);
  fs.rmSync(mark, { force: true });
  // Threads that have come to their end may be ended with the process.
  const nobody = new Int32Array(new SharedArrayBuffer(4));
  for (let wait = 0; wait < ${RECORDING_MS / 10} && othersRecord(); wait++) Atomics.wait(nobody, 0, 0, 10);
});`;
  return `#!/usr/bin/env node
"use strict";
const fs = require("node:fs");
const { Script } = require("node:vm");
const base = require("node:path").join(__dirname, ${JSON.stringify(name)});
const cache = \`\${base}.\${process.arch}.cache\`;
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
 * @param {readonly string[]} programs paths without .js; the first one starts the others when it is run
 * @param {readonly (readonly string[])[]} commandLines of the first program: each adds to the caches what it compiles
 */
export async function addCodeCaches(directory, programs, commandLines) {
  const path = (program, end) => `${directory}/${program}${end}`;
  const writeLoaders = (recording) => {
    for (const program of programs) {
      writeFileSync(path(program, ".js"), loader(program.replace(/.*\//, ""), recording));
    }
  };
  for (const program of programs) {
    renameSync(path(program, ".js"), path(program, ".bundle.js"));
    const text = readFileSync(path(program, ".bundle.js"), "latin1").replace(/^#!.*/, "");
    // As Node wraps modules; not when it is loaded, since that copies all of it.
    const wrapped = `(function (exports, require, module, __filename, __dirname) {${text}\n})`;
    writeFileSync(path(program, ".bundle.js"), wrapped, "latin1");
  }
  writeLoaders(true);
  for (const args of commandLines) {
    const { status, stderr } = spawnSync(process.execPath, [path(programs[0], ".js"), ...args], {
      encoding: "utf8",
    });
    if (status !== 0) throw new Error(`${programs[0]} ${args[0]} failed: ${stderr}`);
  }
  const end = Date.now() + RECORDING_MS;
  for (const program of programs) {
    while (!existsSync(path(program, `.${process.arch}.cache`))) {
      if (Date.now() > end) throw new Error(`${program} made no code cache`);
      await sleep(10);
    }
  }
  writeLoaders(false);
}
