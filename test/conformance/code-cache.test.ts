// The programs as they are built: V8 takes what it made of them then, with the options that they are started with.

import { dirname, resolve } from "node:path";
import { describe, expect, it } from "vitest";
import { NODE_OPTIONS } from "../../src/daemon/launch.ts";
import { MAIN } from "../support/repository.ts";
import { run } from "../support/run.ts";

const PROGRAMS = [
  { program: "cli/main", command: "mount", options: [] },
  { program: "cli/main", command: "convert", options: [] },
  { program: "cli/main", command: "dd", options: [] },
  // As the loader of the program that starts the thread has them.
  { program: "cli/copy-thread", command: "", options: ["--interrupt-budget=2000000"] },
  { program: "daemon/main", command: "", options: NODE_OPTIONS },
  { program: "daemon/io-thread", command: "", options: NODE_OPTIONS },
];

/** Compiles a program as its loader does, and prints whether V8 refused the cache. */
const COMPILE = `
  const fs = require("node:fs");
  const loader = fs.readFileSync(process.argv[1] + ".js", "utf8").replace(/^#!.*/, "");
  const { Script } = require("node:vm");
  require("node:vm").Script = class extends Script {
    constructor(source, options) {
      super(source, options);
      console.log(options.cachedData !== undefined && !this.cachedDataRejected);
      process.exit(0);
    }
  };
  new Function("require", "__dirname", loader)(require, require("node:path").dirname(process.argv[1]));
`;

describe("the code caches of the build", () => {
  it.each(PROGRAMS)("are used: $program $command", async ({ program, command, options }) => {
    const path = resolve(dirname(MAIN), "..", program);
    const { stdout } = await run(process.execPath, [...options, "-e", COMPILE, path, command]);
    expect(stdout.trim()).toBe("true");
  });
});
