// A directory whose files are on a slow medium, for the length of a test.

import { symlink } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";
import { type Foreground, withProgram } from "./foreground.ts";
import { asRecord, numberIn } from "./json.ts";
import { REPOSITORY } from "./repository.ts";
import { until } from "./run.ts";
import { withScratch } from "./scratch.ts";
import {
  SLOW_FILES_READY,
  type SlowFilesCommand,
  type SlowFilesReport,
} from "./slow-files-protocol.ts";

export class SlowDirectory {
  readonly #path: string;
  readonly #program: Foreground;
  #answered = 0;

  constructor(path: string, program: Foreground) {
    this.#path = path;
    this.#program = program;
  }

  /** Path of a file on the slow medium. */
  file(name: string): string {
    return join(this.#path, name);
  }

  tell(command: SlowFilesCommand): void {
    this.#program.write(`${JSON.stringify(command)}\n`);
  }

  /** What was told before is done when it is there. */
  async report(): Promise<SlowFilesReport> {
    const line = ++this.#answered;
    this.tell({ kind: "report" });
    const lines = (): string[] => this.#program.output.split("\n");
    await until(`a report: ${this.#program.output}`, () => lines().length > line + 1);
    const report = asRecord(JSON.parse(lines()[line] ?? ""));
    return {
      reads: numberIn(report, "reads"),
      mostAtOnce: numberIn(report, "mostAtOnce"),
      watched: numberIn(report, "watched"),
      held: numberIn(report, "held"),
    };
  }
}

/** Builds the program as one file, beside which it finds packages. */
async function buildProgram(directory: string): Promise<string> {
  const outfile = join(directory, "slow-files.mjs");
  await symlink(join(REPOSITORY, "node_modules"), join(directory, "node_modules"));
  await build({
    entryPoints: [join(REPOSITORY, "test/support/slow-files-process.ts")],
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    packages: "external",
    logLevel: "warning",
  });
  return outfile;
}

/** Calls `body` with the files of a directory as they are on a slow medium. */
export async function withSlowFiles<T>(
  directory: string,
  body: (slow: SlowDirectory) => Promise<T>,
): Promise<T> {
  return await withScratch("slow-files", async (scratch) => {
    const program = await buildProgram(scratch);
    return await withScratch("slow-mount", async (mountPoint) =>
      withProgram(process.execPath, [program, directory, mountPoint], async (running) => {
        await until(
          "slow files are there",
          () => running.output.startsWith(SLOW_FILES_READY) || !running.isRunning,
        );
        try {
          return await body(new SlowDirectory(mountPoint, running));
        } finally {
          running.closeInput();
          await running.end();
        }
      }),
    );
  });
}
