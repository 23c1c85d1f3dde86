/** Who keeps a mount from being unmounted, as far as /proc and /sys show it to us. */

import fs from "node:fs";
import { processName } from "../storage/process-name.ts";

/** More are only counted. */
const NAMED_MAX = 3;

/**
 * Processes that have a directory or a file of a mount open, and loop devices on its files.
 *
 * @param mountpoint as the mount table has it
 * @returns such as `bash (pid 123)` and `/dev/loop0`; nothing: nobody whom we may see
 */
export function mountUsers(mountpoint: string): readonly string[] {
  const isWithin = (path: string): boolean =>
    path === mountpoint || path.startsWith(`${mountpoint}/`);
  const users = [...loopDevices(isWithin), ...processes(isWithin)];
  if (users.length <= NAMED_MAX) return users;
  return [...users.slice(0, NAMED_MAX), `${users.length - NAMED_MAX} more`];
}

/** As `mountUsers`, to follow "is in use". */
export function byMountUsers(mountpoint: string): string {
  const users = mountUsers(mountpoint);
  return users.length === 0 ? "; root sees by whom, with fuser -vm" : ` by ${users.join(", ")}`;
}

function loopDevices(isWithin: (path: string) => boolean): string[] {
  return entries("/sys/block")
    .filter((name) => isWithin(read(`/sys/block/${name}/loop/backing_file`)))
    .map((name) => `/dev/${name}`);
}

function processes(isWithin: (path: string) => boolean): string[] {
  return entries("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => openPaths(Number(pid)).some(isWithin))
    .flatMap((pid) => {
      try {
        return [processName(pid)];
      } catch {
        // It has ended meanwhile.
        return [];
      }
    });
}

/** What a process has open, and where it is. */
function openPaths(pid: number): string[] {
  return [...["cwd", "root"].map((link) => readLink(`/proc/${pid}/${link}`)), ...openFiles(pid)];
}

/** What a process has open, as far as we may know: paths of now, those of deleted files with ` (deleted)`. */
export function openFiles(pid: number): string[] {
  const directory = `/proc/${pid}/fd`;
  return entries(directory).map((fd) => readLink(`${directory}/${fd}`));
}

/** Nothing: the process has ended, or is another user's. */
function readLink(path: string): string {
  try {
    return fs.readlinkSync(path);
  } catch {
    return "";
  }
}

function entries(directory: string): string[] {
  try {
    return fs.readdirSync(directory);
  } catch {
    return [];
  }
}

function read(path: string): string {
  try {
    return fs.readFileSync(path, "utf8").trim();
  } catch {
    return "";
  }
}
