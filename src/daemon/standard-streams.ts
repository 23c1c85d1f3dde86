/** Standard input and error of the daemon: neither may keep what started it. */

import fs from "node:fs";
import { StorageError } from "../errors.ts";
import { nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";
import { dup2 } from "../syscalls/libc.ts";

const STDIN = 0;
const STDERR = 2;

/** Read from nowhere. */
export function detachInput(): void {
  replace(STDIN, fs.openSync("/dev/null", "r"));
}

/**
 * Append what is written to standard error, by all threads, to a file.
 *
 * @throws {StorageError} it cannot be written
 */
export function redirectMessages(path: string): void {
  try {
    replace(STDERR, fs.openSync(path, "a", 0o600));
  } catch (cause) {
    const reason = `the log cannot be written: ${nodeErrorName(cause)}`;
    throw new StorageError(nodeErrorCode(cause), path, reason, { cause });
  }
}

function replace(descriptor: number, fd: number): void {
  dup2(fd, descriptor);
  fs.closeSync(fd);
}
