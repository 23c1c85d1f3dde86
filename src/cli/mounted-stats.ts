/** What mounts say of their devices: reading NAME.stats.json. */

import fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { canonicalPath, isStale } from "../daemon/mountpoint.ts";
import { TsimgfsError } from "../errors.ts";
import { findMount } from "../fuse/mount-table.ts";
import { STALE_MOUNT } from "../storage/open-reason.ts";
import { nodeErrorCode, nodeErrorName } from "../syscalls/errno-names.ts";
import { DEVICE_SUFFIX } from "../tree/names.ts";

const STATS_SUFFIX = ".stats.json";
/** Bytes that are read at once. */
const READ_SIZE = 65536;

/** The statistics of one device, as its mount has them. */
export type MountedStats = Readonly<Record<string, unknown>>;

/** What is mounted at a path. */
export interface MountedDevices {
  readonly kind: "mount" | "device";
  /** One, unless the path is a mount point. */
  readonly stats: readonly MountedStats[];
}

/**
 * The statistics of all devices of a mount, or of one.
 *
 * @param path a mount point, or a device or statistics file in it
 * @returns undefined: it is none of these
 * @throws {TsimgfsError} there are none: the mount is dead, or has nothing of that name
 */
export function readMountedStats(path: string): MountedDevices | undefined {
  const place = canonicalPath(path);
  if (findMount(place) !== undefined) return { kind: "mount", stats: readAllStats(place, path) };
  const root = dirname(place);
  if (findMount(root) !== undefined) {
    requireAlive(root, path);
    const name = basename(place);
    const stem = [STATS_SUFFIX, DEVICE_SUFFIX].find((suffix) => name.endsWith(suffix));
    if (stem === undefined) {
      throw new TsimgfsError("ENOENT", path, "is no device of the mount");
    }
    const file = join(root, `${name.slice(0, -stem.length)}${STATS_SUFFIX}`);
    return { kind: "device", stats: [readStats(file, path)] };
  }
  if (findMount(dirname(root)) !== undefined) {
    throw new TsimgfsError(
      "ENOENT",
      path,
      "snapshots and partitions have no statistics of their own",
    );
  }
  return undefined;
}

function readAllStats(mountpoint: string, path: string): MountedStats[] {
  requireAlive(mountpoint, path);
  let names: string[];
  try {
    names = fs.readdirSync(mountpoint);
  } catch (cause) {
    throw failed(path, cause);
  }
  return names
    .filter((name) => name.endsWith(STATS_SUFFIX))
    .map((name) => readStats(join(mountpoint, name), path));
}

function requireAlive(mountpoint: string, path: string): void {
  if (!isStale(mountpoint)) return;
  throw new TsimgfsError("ENOTCONN", path, STALE_MOUNT);
}

function readStats(file: string, path: string): MountedStats {
  let text: string;
  try {
    text = readToEnd(file);
  } catch (cause) {
    throw failed(path, cause);
  }
  const stats: unknown = JSON.parse(text);
  if (typeof stats !== "object" || stats === null) {
    throw new TsimgfsError("EIO", file, "has no statistics");
  }
  return Object.fromEntries(Object.entries(stats));
}

/** All that there is: the size that the file has may be that of the text of somebody who opened it after us. */
function readToEnd(file: string): string {
  const fd = fs.openSync(file, "r");
  try {
    const pieces: Buffer[] = [];
    for (;;) {
      const piece = Buffer.allocUnsafe(READ_SIZE);
      const count = fs.readSync(fd, piece);
      if (count === 0) return Buffer.concat(pieces).toString("utf8");
      pieces.push(piece.subarray(0, count));
    }
  } finally {
    fs.closeSync(fd);
  }
}

const REASONS: Readonly<Partial<Record<string, string>>> = {
  ENOENT: "no such device in the mount",
  ENOTDIR: "is a mount on a file, which has no statistics; mount the image on a directory",
  EACCES: "permission denied",
};

function failed(path: string, cause: unknown): TsimgfsError {
  const code = nodeErrorCode(cause);
  const reason = REASONS[code] ?? `its statistics cannot be read: ${nodeErrorName(cause)}`;
  return new TsimgfsError(code, path, reason, { cause });
}
