/** Telling whether two names mean one file. */

import fs from "node:fs";
import { resolve } from "node:path";

/** What a file is known by: its inode or device, or its path while it does not exist. */
export function fileIdentity(path: string): string {
  try {
    const { dev, ino, rdev } = fs.statSync(path);
    return rdev !== 0 ? `device ${rdev}` : `${dev}:${ino}`;
  } catch {
    return resolve(path);
  }
}
