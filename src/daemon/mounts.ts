/** The mounts that there are: from the kernel's table, and from what the mounts say of themselves. */

import fs from "node:fs";
import { join } from "node:path";
import { type MountEntry, readMountTable } from "../fuse/mount-table.ts";
import { IMAGE_XATTR } from "../storage/fixed-length.ts";
import { getxattr } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isStale } from "./mountpoint.ts";

/** Room for the value of any attribute: the kernel's limit. */
const XATTR_MAX = 65536;

export interface ActiveMount {
  readonly mountpoint: string;
  readonly source: string;
  /** stale: the daemon is dead; the mount can be cleaned up. */
  readonly state: "active" | "stale";
  readonly pid: number | undefined;
  readonly devices: readonly {
    readonly device: string;
    readonly image: string;
    readonly format: string;
  }[];
}

/** All mounts of ours, oldest first. */
export function listMounts(): ActiveMount[] {
  return readMountTable().map(describeMount);
}

function describeMount({ mountpoint, source }: MountEntry): ActiveMount {
  if (isStale(mountpoint))
    return { mountpoint, source, state: "stale", pid: undefined, devices: [] };
  return {
    mountpoint,
    source,
    state: "active",
    pid: readDaemonPid(mountpoint),
    devices: deviceFiles(mountpoint).map((device) => ({
      device,
      image: readXattr(device, IMAGE_XATTR) ?? "",
      format: readXattr(device, "user.tsimgfs.format") ?? "",
    })),
  };
}

/** The devices of a mount; none where this user may not look. */
function deviceFiles(mountpoint: string): string[] {
  try {
    if (fs.statSync(mountpoint).isFile()) return [mountpoint];
    const names = fs.readdirSync(mountpoint).filter((name) => name.endsWith(".raw"));
    return names.map((name) => join(mountpoint, name));
  } catch {
    return [];
  }
}

/** The process that serves a mount; undefined where this user may not ask. */
export function readDaemonPid(mountpoint: string): number | undefined {
  const text = readXattr(mountpoint, "user.tsimgfs.pid");
  return text === undefined ? undefined : Number(text);
}

/** The value of an extended attribute; undefined: there is none, or this user may not ask. */
export function readXattr(path: string, name: string): string | undefined {
  const value = NativeBuffer.allocate(XATTR_MAX);
  const length = getxattr(path, name, value.address, value.length);
  return length < 0 ? undefined : Buffer.from(value.bytes.subarray(0, length)).toString();
}

/** Whether a process exists and has not ended. */
export function isAlive(pid: number): boolean {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, "utf8");
    // After the name in parentheses: the state; Z has ended, and waits for its parent to notice.
    return stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3) !== "Z";
  } catch {
    return false;
  }
}
