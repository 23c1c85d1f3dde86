/** What refusals of open(2), and of other calls that take a path, say: whose a file is, and what is in the way. */

import fs from "node:fs";
import { dirname } from "node:path";
import type { Errno } from "../errors.ts";
import { nodeErrorName } from "../syscalls/errno-names.ts";

const PERMISSION_BITS = 0o7777;

/** What Node makes of bytes in arguments that are not UTF-8. */
const REPLACEMENT = "\ufffd";

/** Why nothing of a mount can be used whose daemon was killed. */
export const STALE_MOUNT = "its daemon is dead; tsimgfs umount clears the mount";

const OPEN_REASONS: Readonly<Partial<Record<string, string>>> = {
  ENOENT: "no such file",
  EISDIR: "is a directory",
  EROFS: "is on a file system that is read-only",
  ENOTDIR: "a part of the path is not a directory",
  ELOOP: "too many symbolic links",
  ENOTCONN: STALE_MOUNT,
};

/**
 * Why open(2), or another call, has refused a file, in words for people.
 *
 * @param cause what node:fs threw
 */
export function openReason(path: string, code: Errno, cause: unknown): string {
  if (code === "EACCES" || code === "EPERM") return denialOf(path);
  if (code === "ENOENT" && path.includes(REPLACEMENT)) {
    return "no such file: names that are not valid UTF-8 cannot be used";
  }
  const call = cause instanceof Error && "syscall" in cause ? String(cause.syscall) : "open";
  return OPEN_REASONS[code] ?? `${call} failed: ${nodeErrorName(cause)}`;
}

/** Who was refused learns whose file it is. */
function denialOf(path: string): string {
  try {
    const { uid, mode } = fs.statSync(path);
    const permissions = (mode & PERMISSION_BITS).toString(8).padStart(4, "0");
    const what = isReadable(path) ? "permission denied to write to it" : "permission denied";
    return `${what}: it belongs to ${uid === 0 ? "root" : `user ${uid}`}, mode ${permissions}`;
  } catch {
    return isReadable(dirname(path))
      ? "permission denied: no file can be made in its directory"
      : "permission denied: its directory is closed to you";
  }
}

/** Whether this process may read a file. */
export function isReadable(path: string): boolean {
  try {
    fs.accessSync(path, fs.constants.R_OK);
    return true;
  } catch {
    return false;
  }
}
