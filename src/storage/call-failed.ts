/** Errors of calls that read or write a file. */

import { StorageError } from "../errors.ts";
import { errnoCode, errnoName } from "../syscalls/errno-names.ts";
import { errno } from "../syscalls/libc.ts";

/** What the usual failures of a call come from. */
const CALL_REASONS: Readonly<Partial<Record<string, string>>> = {
  ENOSPC: ", no space is left on its file system",
  EDQUOT: ", the quota of its owner is used up",
  EFBIG: ", its file system has no files of that size",
};

/** The error for a call on a file that has just failed, by errno. */
export function callFailed(path: string, call: string, offset: number): StorageError {
  const number = errno();
  const name = errnoName(number);
  return new StorageError(
    errnoCode(number),
    path,
    `${call} at offset 0x${offset.toString(16)} failed: ${name}${CALL_REASONS[name] ?? ""}`,
    { offset },
  );
}
