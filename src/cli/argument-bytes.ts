/** Arguments that are not UTF-8: Node puts other characters in place of their bytes, so that they name other files. */

import { isUtf8 } from "node:buffer";
import fs from "node:fs";
import { UsageError } from "../errors.ts";

/** What Node makes of bytes that are not UTF-8; it may as well be meant. */
const REPLACEMENT = "\ufffd";

/** @throws {UsageError} an argument is not what the user has given */
export function refuseBrokenArguments(argv: readonly string[]): void {
  const word = argv.find((argument) => argument.includes(REPLACEMENT));
  if (word === undefined || isUtf8(fs.readFileSync("/proc/self/cmdline"))) return;
  throw new UsageError(word, "is not valid UTF-8, and names that are not cannot be used");
}
