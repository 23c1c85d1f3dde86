/** The place of a mount: what may be there, and what a dead daemon may have left. */

import fs from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { TsimgfsError } from "../errors.ts";
import { unmountFuse } from "../fuse/fusermount.ts";
import { findMount } from "../fuse/mount-table.ts";
import { openReason } from "../storage/open-reason.ts";
import { nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";

/** What a mount answers whose daemon is gone, and while that is noticed. */
const DEAD: ReadonlySet<string> = new Set(["ENOTCONN", "ECONNABORTED"]);

const UNUSABLE: Readonly<Partial<Record<string, string>>> = {
  ENOENT: "no such directory; make it with mkdir",
  EACCES: "permission denied",
};

export interface Mountpoint {
  /** Absolute, without symbolic links, as the mount table has it. */
  readonly path: string;
  readonly isFile: boolean;
}

/**
 * `path` absolute and without symbolic links. A mount of ours there is not touched: its daemon may be
 * dead, or not answer.
 */
export function canonicalPath(path: string): string {
  const absolute = resolve(path);
  const inParent = join(realPath(dirname(absolute)), basename(absolute));
  return findMount(inParent) === undefined ? realPath(inParent) : inParent;
}

function realPath(path: string): string {
  try {
    return fs.realpathSync(path);
  } catch {
    return path;
  }
}

/**
 * Whether a mount of ours is at `path` whose daemon is dead. By statfs(2), which the kernel passes on each
 * time: attributes of a directory it knows for a minute, whether or not the daemon still is.
 *
 * @param path as `canonicalPath` gives it
 */
export function isStale(path: string): boolean {
  if (findMount(path) === undefined) return false;
  try {
    fs.statfsSync(path);
    return false;
  } catch (error) {
    return DEAD.has(nodeErrorName(error));
  }
}

/**
 * Check that a mount can be made at `path`, and clear what a dead daemon left there.
 *
 * @throws {TsimgfsError} it is missing, of the wrong kind, in use, or not empty
 */
export function prepareMountpoint(
  path: string,
  options: { images: number; nonempty: boolean },
): Mountpoint {
  if (path === "") throw new TsimgfsError("ENOENT", "mount", "the mount point has no name");
  const canonical = canonicalPath(path);
  while (isStale(canonical)) unmountFuse(canonical, { lazy: true });
  let stats: fs.Stats;
  try {
    stats = fs.statSync(canonical);
  } catch (cause) {
    const code = nodeErrorCode(cause);
    const reason = UNUSABLE[code] ?? openReason(path, code, cause);
    throw new TsimgfsError(code, path, reason, { cause });
  }
  if (findMount(canonical) !== undefined) {
    throw new TsimgfsError("EBUSY", path, "is a mount of tsimgfs already; tsimgfs umount ends it");
  }
  if (stats.isFile()) {
    if (options.images > 1) {
      throw new TsimgfsError("ENOTDIR", path, "is a file: only one image can be mounted on it");
    }
    return { path: canonical, isFile: true };
  }
  if (!stats.isDirectory()) {
    throw new TsimgfsError("ENOTDIR", path, "is neither a directory nor a regular file");
  }
  if (!options.nonempty && !isEmpty(canonical, path)) {
    throw new TsimgfsError(
      "ENOTEMPTY",
      path,
      "is not empty; mount over it all the same with -o nonempty",
    );
  }
  return { path: canonical, isFile: false };
}

function isEmpty(canonical: string, path: string): boolean {
  try {
    return fs.readdirSync(canonical).length === 0;
  } catch (cause) {
    const code = nodeErrorCode(cause);
    throw new TsimgfsError(code, path, openReason(path, code, cause), { cause });
  }
}
