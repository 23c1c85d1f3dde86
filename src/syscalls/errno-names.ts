/** Numbers of errno(3) on Linux and their names. */

import { constants } from "node:os";
import type { Errno } from "../errors.ts";
import { strerror } from "./libc.ts";

const ERRNO: Readonly<Record<string, number>> = constants.errno;
const NAMES = new Map(Object.entries(ERRNO).map(([name, number]) => [number, name]));

/** The number of an errno name, > 0; EIO for a name that this system lacks. */
export function errnoNumber(name: Errno): number {
  return ERRNO[name] ?? constants.errno.EIO;
}

/** `ENOSPC` for 28; `errno 12345` for a number that this system lacks. */
export function errnoName(number: number): string {
  return NAMES.get(number) ?? `errno ${number}`;
}

/** `No space left on device` for ENOSPC. */
export function errnoText(name: Errno): string {
  return strerror(errnoNumber(name));
}

const REPORTED: ReadonlySet<string> = new Set<Errno>([
  "EACCES",
  "EAGAIN",
  "EBADF",
  "EBUSY",
  "EEXIST",
  "EFBIG",
  "EINVAL",
  "EISDIR",
  "ELOOP",
  "ENODEV",
  "ENOENT",
  "ENOLCK",
  "ENOMEM",
  "ENOSPC",
  "ENOTCONN",
  "ENOTDIR",
  "ENXIO",
  "EPERM",
  "EROFS",
]);

function isReported(name: string): name is Errno {
  return REPORTED.has(name);
}

/** The errno of a failed call as an error code; a rare one becomes EIO. */
export function errnoCode(number: number): Errno {
  const name = errnoName(number);
  return isReported(name) ? name : "EIO";
}

/** The `code` of an error that node:fs threw, such as ENAMETOOLONG; empty if it has none. */
export function nodeErrorName(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/** The `code` of an error that node:fs threw, as an error code; a rare one becomes EIO. */
export function nodeErrorCode(error: unknown): Errno {
  const code = nodeErrorName(error);
  return isReported(code) ? code : "EIO";
}
