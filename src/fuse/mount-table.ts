/** The kernel's table of mounts, as far as it is ours. Source: proc(5), /proc/PID/mountinfo. */

import fs from "node:fs";

/** The type that our mounts have in the table. */
export const MOUNT_TYPE = "fuse.tsimgfs";

export interface MountEntry {
  readonly mountpoint: string;
  /** `major:minor`: names the bdi in /sys/class/bdi and the connection in /sys/fs/fuse. */
  readonly device: string;
  /** What `fsname=` says: by default the image. */
  readonly source: string;
}

/** Our mounts, oldest first. */
export function readMountTable(): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of fs.readFileSync("/proc/self/mountinfo", "utf8").split("\n")) {
    // 36 35 98:0 /root /mountpoint options fields... - type source superoptions
    const [mount, filesystem] = line.split(" - ");
    const [type, source] = filesystem?.split(" ") ?? [];
    const [, , device, , mountpoint] = mount?.split(" ") ?? [];
    if (type !== MOUNT_TYPE || mountpoint === undefined || device === undefined) continue;
    entries.push({
      mountpoint: decodeEscapes(mountpoint),
      device,
      source: decodeEscapes(source ?? ""),
    });
  }
  return entries;
}

/** The newest of our mounts at this place: `path` absolute, without symbolic links. */
export function findMount(path: string): MountEntry | undefined {
  return readMountTable().findLast((entry) => entry.mountpoint === path);
}

/** Octal escapes of white space and backslashes. */
function decodeEscapes(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}
