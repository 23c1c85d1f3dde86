// An ordinary user for mounts without root: who it is, and why a test may have to be skipped.

import { accessSync, constants, statSync } from "node:fs";
import { REPOSITORY } from "./repository.ts";
import type { Identity } from "./run.ts";

/** nobody:nogroup, which every Debian has. The global setup opens /dev/fuse for everyone. */
export const ORDINARY_USER: Identity = { uid: 65534, gid: 65534 };

/** True if the test can run commands under other identities, attach loop devices and so on. */
export const IS_ROOT: boolean = process.getuid?.() === 0;

/** What keeps an ordinary user from running the command, if anything. */
export function ordinaryUserObstacle(): string | undefined {
  if (!IS_ROOT) {
    return "needs root, to become another user";
  }
  const parts = REPOSITORY.split("/");
  for (let depth = 1; depth <= parts.length; depth++) {
    const directory = parts.slice(0, depth).join("/") || "/";
    if ((statSync(directory).mode & 0o001) === 0) {
      return `${directory} is closed to other users`;
    }
  }
  try {
    accessSync(process.execPath, constants.X_OK);
  } catch {
    return `${process.execPath} is closed to other users`;
  }
  return undefined;
}
