/**
 * What the kernel's mount table says about a path. Reading it does not touch the mounts themselves.
 */

import { readFile } from "node:fs/promises";

export interface Mount {
  readonly mountPoint: string;
  readonly type: string;
  /** MAJOR:MINOR, also the name of the mount's bdi. */
  readonly device: string;
}

/** The uppermost mount at exactly this path, if there is one. */
export async function findMount(path: string): Promise<Mount | undefined> {
  const lines = (await readFile("/proc/self/mountinfo", "latin1")).split("\n");
  return lines.map(parseLine).findLast((mount) => mount?.mountPoint === path);
}

/** The mount's read-ahead in KiB; undefined where the kernel does not tell. */
export async function readAheadKb(mount: Mount): Promise<number | undefined> {
  try {
    return Number(await readFile(`/sys/class/bdi/${mount.device}/read_ahead_kb`, "utf8"));
  } catch {
    return undefined;
  }
}

/**
 * One line of mountinfo: ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG...] - TYPE SOURCE
 * OPTIONS. See proc(5).
 */
function parseLine(line: string): Mount | undefined {
  const [before, after] = line.split(" - ");
  const [, , device, , mountPoint] = before?.split(" ") ?? [];
  const [type] = after?.split(" ") ?? [];
  if (device === undefined || mountPoint === undefined || type === undefined) return undefined;
  const bytes = mountPoint.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
  return { device, mountPoint: Buffer.from(bytes, "latin1").toString("utf8"), type };
}
