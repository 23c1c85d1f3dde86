/** The snapshots of a device in a mount: its daemon lists and changes them. */

import { basename, dirname } from "node:path";
import type { SnapshotAction } from "../block/snapshots.ts";
import { canonicalPath } from "../daemon/mountpoint.ts";
import { TsimgfsError } from "../errors.ts";
import type { SnapshotInfo } from "../formats/driver.ts";
import { findMount } from "../fuse/mount-table.ts";
import { DEVICE_SUFFIX } from "../tree/names.ts";
import { SNAPSHOT_XATTRS } from "../tree/snapshot-control.ts";
import { setDeviceAttribute } from "./device-attribute.ts";
import { readMountedStats } from "./mounted-stats.ts";

const NANOSECONDS = 1_000_000_000n;

/** Whether a path is a device of a mount, or a file that one is mounted on. */
export function isMountedDevice(path: string): boolean {
  const place = canonicalPath(path);
  if (findMount(place) !== undefined) return true;
  return findMount(dirname(place)) !== undefined && basename(place).endsWith(DEVICE_SUFFIX);
}

/** What an error of the daemon means; its log says more. */
const REASONS: Readonly<Record<string, string>> = {
  EBUSY: "is in use: nobody may have it open, nor may it be streamed",
  ENOENT: "there is no such snapshot",
  EOPNOTSUPP: "its image cannot have snapshots, or not as it is",
  EFBIG: "its image has as many snapshots as it can have",
  EINVAL: "the name is too long, or its refcounts are too narrow for one more snapshot",
  ENOSPC: "no space is left for the image",
  EIO: "its image is damaged, or cannot be written to",
};

/**
 * Let the daemon do something with a snapshot; it is done when this returns.
 *
 * @throws {TsimgfsError} what the daemon says
 */
export function changeMountedSnapshots(device: string, action: SnapshotAction, name: string): void {
  setDeviceAttribute(device, SNAPSHOT_XATTRS[action], name, REASONS);
}

/**
 * The snapshots of a device, in the fields of qemu-img info, as NAME.stats.json has them.
 *
 * @throws {TsimgfsError} it is no device of a mount on a directory
 */
export function readMountedSnapshots(device: string): SnapshotInfo[] {
  const mounted = readMountedStats(device);
  const snapshots: unknown =
    mounted?.kind === "device" ? mounted.stats[0]?.["snapshots"] : undefined;
  if (!Array.isArray(snapshots)) {
    throw new TsimgfsError("ENOTSUP", device, "is no device whose snapshots can be listed");
  }
  return snapshots.map((fields: Readonly<Record<string, unknown>>, number) => ({
    number,
    id: String(fields["id"]),
    name: String(fields["name"]),
    vmStateSize: Number(fields["vm-state-size"]),
    seconds: Number(fields["date-sec"]),
    nanoseconds: Number(fields["date-nsec"]),
    vmClock:
      BigInt(Number(fields["vm-clock-sec"])) * NANOSECONDS +
      BigInt(Number(fields["vm-clock-nsec"])),
    instructionCount: fields["icount"] === undefined ? undefined : BigInt(Number(fields["icount"])),
    virtualSize: 0,
  }));
}
