/** What becomes of a request that fails: a reply with an errno, and a line of the log. */

import { constants } from "node:os";
import { printable, TsimgfsError } from "../errors.ts";
import { errnoNumber } from "../syscalls/errno-names.ts";
import { writeLine } from "../trace.ts";

/** Log why a request failed; returns its errno, > 0. A request never ends the daemon. */
export function reportFailure(operation: string, error: unknown): number {
  if (error instanceof TsimgfsError) {
    writeLine(`tsimgfs: ${error.message} (${operation})`);
    return errnoNumber(error.code);
  }
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
  writeLine(`tsimgfs: ${operation} failed: ${stack.split("\n").map(printable).join("\n")}`);
  return constants.errno.EIO;
}
