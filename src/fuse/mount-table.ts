/** The kernel's table of mounts, as far as it is ours. Source: proc(5), /proc/PID/mountinfo. */

import fs from "node:fs";

/** The type that our mounts have in the table. */
export const MOUNT_TYPE = "fuse.tsimgfs";

export interface MountEntry {
  readonly type: string;
  readonly mountpoint: string;
  /** `major:minor`: names the bdi in /sys/class/bdi and the connection in /sys/fs/fuse. */
  readonly device: string;
  /** What `fsname=` says: by default the image. */
  readonly source: string;
  /** Of FUSE file systems: who has mounted it; root, where nothing is said. */
  readonly userId: number;
}

/** Our mounts, oldest first. */
export function readMountTable(): MountEntry[] {
  return readAllMounts().filter(({ type }) => type === MOUNT_TYPE);
}

/** All mounts that this process sees, oldest first. */
export function readAllMounts(): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of fs.readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    // 36 35 98:0 /root /mountpoint options fields... - type source superoptions
    const [mount, filesystem] = line.split(" - ");
    const [type, source, options] = filesystem?.split(" ") ?? [];
    const [, , device, , mountpoint] = mount?.split(" ") ?? [];
    if (type === undefined || mountpoint === undefined || device === undefined) continue;
    entries.push({
      type,
      mountpoint: decodeEscapes(mountpoint),
      device,
      source: decodeEscapes(source ?? ""),
      userId: Number(/(?:^|,)user_id=(\d+)/.exec(options ?? "")?.[1] ?? 0),
    });
  }
  return entries;
}

/**
 * The mount of ours at this place; undefined if there is none, or another file system on top of it.
 *
 * @param path absolute, without symbolic links
 */
export function findMount(path: string): MountEntry | undefined {
  const top = readAllMounts().findLast((entry) => entry.mountpoint === path);
  return top?.type === MOUNT_TYPE ? top : undefined;
}

/** Octal escapes of white space and backslashes. */
function decodeEscapes(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}
