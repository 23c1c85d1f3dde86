// Kills a program in the middle of what it writes: not by the time, but when the host says that a file has changed.

import { type FSWatcher, watch } from "node:fs";
import { basename, dirname } from "node:path";

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
