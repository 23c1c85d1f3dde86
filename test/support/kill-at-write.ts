// Kills a program in the middle of what it writes: not by the time, but when the host says that a file has changed.

import { type FSWatcher, watch } from "node:fs";
import { basename, dirname } from "node:path";
import { withProgram } from "./foreground.ts";
import { MAIN } from "./repository.ts";

const TIMEOUT_MS = 60_000;

/**
 * Calls `kill` when a file has changed `changes` times since now; the kernel tells of several in a row as of one.
 * The caller closes what is returned.
 */
export function atChange(path: string, changes: number, kill: () => void): FSWatcher {
  let seen = 0;
  // The directory: the file may not be there yet.
  return watch(dirname(path), (_, name) => {
    if (name === basename(path) && ++seen === changes) kill();
  });
}

/**
 * Runs `tsimgfs ARGS…` and kills it when a file has changed `changes` times, unless it has ended by then.
 *
 * @throws {Error} it failed
 */
export async function killAtChange(
  args: readonly string[],
  path: string,
  changes: number,
): Promise<void> {
  await withProgram(process.execPath, [MAIN, ...args], async (program) => {
    const watcher = atChange(path, changes, () => {
      if (program.isRunning) program.kill("SIGKILL");
    });
    try {
      const end = await program.end(TIMEOUT_MS);
      if (end !== 0 && end !== "SIGKILL")
        throw new Error(`it ended with ${end}: ${program.output}`);
    } finally {
      watcher.close();
    }
  });
}
