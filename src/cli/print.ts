/** Standard output and standard error of the commands: written whole, before the process ends. */

import fs from "node:fs";

const STDOUT = 1;
const STDERR = 2;

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  let done = 0;
  while (done < bytes.length) {
    try {
      done += fs.writeSync(fd, bytes, done);
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined;
      // A pipe that somebody made non-blocking is full for the moment.
      if (code === "EAGAIN") continue;
      // Whoever read it has seen enough, as `head` does.
      if (code === "EPIPE") process.exit(0);
      throw error;
    }
  }
}

/** Print to standard output. */
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
