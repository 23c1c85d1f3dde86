/** Standard output and standard error of the commands: written whole, before the process ends. */

import fs from "node:fs";
import { StorageError } from "../errors.ts";
import { nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";

const STDOUT = 1;
const STDERR = 2;

/** Where nothing else was found to be wrong. */
const EXIT_FAILED = 1;

/** Standard output takes no more. */
export class OutputError extends StorageError {
  constructor(name: string, cause: unknown) {
    const reason = name === "ENOSPC" ? "no space left" : `cannot be written: ${name}`;
    super(nodeErrorCode(cause), "standard output", reason, { cause });
  }
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  let done = 0;
  while (done < bytes.length) {
    try {
      done += fs.writeSync(fd, bytes, done);
    } catch (error) {
      const code = nodeErrorName(error);
      // A pipe that somebody made non-blocking is full for the moment.
      if (code === "EAGAIN") continue;
      // Whoever read it has seen enough, as `head` does. What was found until now is the exit status.
      if (code === "EPIPE") process.exit();
      // Of standard error nobody can be told.
      if (fd === STDERR) process.exit(process.exitCode || EXIT_FAILED);
      throw new OutputError(code, error);
    }
  }
}

/**
 * Print to standard output. If its reader has gone, the process ends with the exit status that is set.
 *
 * @throws {OutputError} it cannot be written
 */
export function print(text: string): void {
  writeAll(STDOUT, text);
}

let isQuiet = false;

/** From now on print results and errors only: no notes, no progress. */
export function beQuiet(): void {
  isQuiet = true;
}

/** Whether nothing is printed but results and errors. */
export function quiet(): boolean {
  return isQuiet;
}

/** Print to standard error what is worth knowing, and no failure: `tsimgfs: NOTE`. */
export function printNote(note: string): void {
  if (!isQuiet) printMessage(note);
}

/** Print one message to standard error: `tsimgfs: MESSAGE`. */
export function printMessage(message: string): void {
  writeAll(STDERR, `tsimgfs: ${message}\n`);
}

/** Print to standard error what is no message of ours, as other programs print it. */
export function printError(text: string): void {
  writeAll(STDERR, text);
}
