// Reads the kernel's mount table, which says what is mounted without touching any mount.

import { readFileSync } from "node:fs";

export interface MountEntry {
  readonly mountPoint: string;
  /** Options of the mount point, such as ro,nosuid,nodev. */
  readonly options: readonly string[];
  readonly type: string;
  readonly source: string;
  /** Options of the file system, such as rw,user_id=0. */
  readonly superOptions: readonly string[];
  /** Device number as "major:minor". */
  readonly device: string;
}

function unescapeField(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/** All mounts, in the order in which they were made. */
export function mountTable(): MountEntry[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => {
      const fields = line.split(" ");
      const rest = fields.slice(fields.indexOf("-", 6) + 1);
      return {
        mountPoint: unescapeField(fields[4] ?? ""),
        options: (fields[5] ?? "").split(","),
        type: rest[0] ?? "",
        source: unescapeField(rest[1] ?? ""),
        superOptions: (rest[2] ?? "").split(","),
        device: fields[2] ?? "",
      };
    });
}

/** The topmost mount at `mountPoint`, if any. */
export function mountAt(mountPoint: string): MountEntry | undefined {
  return mountTable()
    .reverse()
    .find((entry) => entry.mountPoint === mountPoint);
}

/** The mounts at or below a directory, topmost first: the order in which to unmount them. */
export function mountsBelow(directory: string): MountEntry[] {
  return mountTable()
    .reverse()
    .filter((entry) => `${entry.mountPoint}/`.startsWith(`${directory}/`));
}
