/** Removes a directory of the benchmark's own. */

import { run } from "./run-command.ts";

/**
 * Does not go into mounts: one that could not be taken away keeps its mount point, and this fails.
 */
export async function removeTree(directory: string): Promise<void> {
  await run(["find", directory, "-xdev", "-depth", "-delete"]);
}
