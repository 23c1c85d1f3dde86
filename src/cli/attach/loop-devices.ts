/** Loop devices: which there are, as /sys says, and their making and removal by losetup(8). */

import fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TsimgfsError } from "../../errors.ts";
import { ioctl } from "../../syscalls/libc.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { runTool, runToolPatiently } from "./run-tool.ts";

const SYS_BLOCK = "/sys/block";
/** Sizes in /sys are in these units, whatever the device's sectors are, bytes. */
const SYS_SECTOR_SIZE = 512;

const LOOP_GET_STATUS64 = 0x4c05;
/** Offsets, and the length, bytes. */
const LOOP_INFO64 = { fileName: 56, cryptName: 120, size: 232 } as const;

const POLL_MS = 10;
/** A device that is still open after this long is used by somebody. */
const REMOVAL_DEADLINE_MS = 5000;

/** A block device: one of /dev. */
export interface BlockDevice {
  readonly path: string;
  /** `major:minor`, as in the mount table. */
  readonly deviceNumber: string;
  /** Bytes. */
  readonly size: number;
}

/** What the kernel has found in the partition table of a loop device. */
export interface KernelPartition extends BlockDevice {
  readonly number: number;
}

export interface LoopDevice extends BlockDevice {
  readonly backingFile: string;
  readonly partitions: readonly KernelPartition[];
}

/** All loop devices that have a file. */
export function listLoopDevices(): LoopDevice[] {
  return fs
    .readdirSync(SYS_BLOCK)
    .filter((name) => name.startsWith("loop"))
    .map(readLoopDevice)
    .filter((device) => device !== undefined);
}

/** The loop device of this name, such as `loop0`; undefined: it has no file, or is none. */
export function readLoopDevice(name: string): LoopDevice | undefined {
  const directory = join(SYS_BLOCK, name);
  const place = readAttribute(join(directory, "loop/backing_file"));
  const device = readBlockDevice(directory);
  if (place === undefined || device === undefined) return undefined;
  // Of a file on a mount that was taken out of sight, only the part below the mount point is left.
  const backingFile = (dirname(place) === "/" ? nameAtSetup(device.path) : undefined) ?? place;
  const partitions: KernelPartition[] = [];
  for (const entry of fs.readdirSync(directory)) {
    const number = readAttribute(join(directory, entry, "partition"));
    const partition = readBlockDevice(join(directory, entry));
    if (number === undefined || partition === undefined) continue;
    partitions.push({ ...partition, number: Number(number) });
  }
  partitions.sort((a, b) => a.number - b.number);
  return { ...device, backingFile, partitions };
}

/**
 * What losetup has called the file of a loop device, cut off after 63 bytes; undefined: who knows.
 * Source: linux/loop.h, `struct loop_info64`.
 */
function nameAtSetup(path: string): string | undefined {
  let fd: number | undefined;
  try {
    fd = fs.openSync(path, "r");
    const info = NativeBuffer.allocate(LOOP_INFO64.size);
    if (ioctl(fd, LOOP_GET_STATUS64, info.address) !== 0) return undefined;
    const name = info.bytes.subarray(LOOP_INFO64.fileName, LOOP_INFO64.cryptName);
    return Buffer.from(name.subarray(0, name.indexOf(0))).toString();
  } catch {
    return undefined;
  } finally {
    if (fd !== undefined) fs.closeSync(fd);
  }
}

function readBlockDevice(directory: string): BlockDevice | undefined {
  const deviceNumber = readAttribute(join(directory, "dev"));
  const sectors = readAttribute(join(directory, "size"));
  if (deviceNumber === undefined || sectors === undefined) return undefined;
  const path = `/dev/${basename(directory)}`;
  return { path, deviceNumber, size: Number(sectors) * SYS_SECTOR_SIZE };
}

/** A line of /sys; undefined: there is none, or not any more. */
function readAttribute(path: string): string | undefined {
  try {
    return fs.readFileSync(path, "utf8").trimEnd();
  } catch {
    return undefined;
  }
}

export interface LoopOptions {
  readonly readOnly: boolean;
  /** Bytes. */
  readonly sectorSize: number;
  /** A part of the file, bytes; undefined: all of it, with its partition table. */
  readonly window?: { readonly start: number; readonly size: number } | undefined;
}

/**
 * Give a free loop device a file. The file's own page cache is left out (direct I/O): the device has one.
 *
 * @throws {TsimgfsError} with what losetup said
 */
export function makeLoopDevice(file: string, options: LoopOptions): LoopDevice {
  const { readOnly, sectorSize, window } = options;
  const args = ["--find", "--show", "--direct-io=on", `--sector-size=${sectorSize}`];
  if (readOnly) args.push("--read-only");
  if (window === undefined) args.push("--partscan");
  else args.push(`--offset=${window.start}`, `--sizelimit=${window.size}`);
  const name = basename(runTool("losetup", [...args, "--", file], file).trim());
  const device = readLoopDevice(name);
  if (device === undefined) throw new TsimgfsError("EIO", `/dev/${name}`, "is gone again");
  return device;
}

/**
 * Take the file from a loop device, and wait until it has none.
 *
 * @throws {TsimgfsError} EBUSY: somebody has it open; it loses its file at the last close
 */
export async function removeLoopDevice({ path, backingFile }: LoopDevice): Promise<void> {
  const isThere = (): boolean => readLoopDevice(basename(path))?.backingFile === backingFile;
  try {
    await runToolPatiently("losetup", ["--detach", path], path);
  } catch (error) {
    const isBusy = error instanceof TsimgfsError && error.code === "EBUSY";
    // Somebody else was faster; or had removed it while it was in use: it was gone with its last user.
    if (isBusy || isThere()) throw error;
  }
  const deadline = performance.now() + REMOVAL_DEADLINE_MS;
  while (isThere()) {
    if (performance.now() > deadline) {
      throw new TsimgfsError("EBUSY", path, "is in use; close what uses it (fuser -m tells)");
    }
    await sleep(POLL_MS);
  }
}
