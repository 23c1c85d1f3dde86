/** The partitions of an attached disk as block devices: the kernel's, or loop devices of their own. */

import fs from "node:fs";
import { join } from "node:path";
import { readXattr } from "../../daemon/mounts.ts";
import { type BlockDevice, type LoopDevice, makeLoopDevice } from "./loop-devices.ts";

/** A partition of the disk, as the mount shows it. */
export interface DiskPartition {
  readonly number: number;
  /** Bytes. */
  readonly start: number;
  /** Bytes. */
  readonly size: number;
  /** Of a GPT. */
  readonly name: string | undefined;
}

export interface PartitionDevice extends DiskPartition {
  /** undefined: the kernel has no device for it. */
  readonly device: BlockDevice | undefined;
}

/** What the directory NAME.partitions says. */
export interface DiskPartitions {
  /** `gpt`, `gpt-backup` (only the copy at the end is right), `gpt-damaged` (neither is), `dos` or `none`. */
  readonly table: string;
  readonly sectorSize: number;
  readonly partitions: readonly DiskPartition[];
}

/** Read NAME.partitions, beside the device `deviceFile`. */
export function readPartitions(deviceFile: string): DiskPartitions {
  const directory = deviceFile.replace(/\.raw$/, ".partitions");
  const partitions = fs.readdirSync(directory).map((name) => {
    const value = (attribute: string): string | undefined =>
      readXattr(join(directory, name), `user.tsimgfs.partition-${attribute}`);
    return {
      number: Number(value("number")),
      start: Number(value("start")),
      size: Number(value("size")),
      name: value("name"),
    };
  });
  partitions.sort((a, b) => a.number - b.number);
  return {
    table: readXattr(directory, "user.tsimgfs.partition-table") ?? "none",
    sectorSize: Number(readXattr(directory, "user.tsimgfs.sector-size")),
    partitions,
  };
}

/** Which device each partition is, where the kernel has read the table of the whole disk's device. */
export function kernelDevices(
  disk: LoopDevice,
  partitions: readonly DiskPartition[],
): PartitionDevice[] {
  return partitions.map((partition) => ({
    ...partition,
    device: disk.partitions.find(({ number }) => number === partition.number),
  }));
}

/** As `partition`, with a loop device of its own if it has none. */
export function withLoopDevice(
  partition: PartitionDevice,
  deviceFile: string,
  options: { readonly readOnly: boolean; readonly sectorSize: number },
): PartitionDevice {
  if (partition.device !== undefined) return partition;
  return { ...partition, device: makeLoopDevice(deviceFile, { ...options, window: partition }) };
}
