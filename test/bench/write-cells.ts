/** The measurements of writing, for which images they are made, and what they leave in the image. */

import { MIB, type Target } from "./cell.ts";
import { COPY_CELL_NAMES, COPY_CELLS } from "./copy-cells.ts";
import { type FioResult, fioForSeconds } from "./fio.ts";
import type { WriteImageName } from "./image-names.ts";
import { copyTreeToLoop, makeFileSystemOnLoop } from "./loop-cells.ts";
import { onOneCpu } from "./one-cpu.ts";
import { run } from "./run-command.ts";
import { onceOverDevice } from "./whole-device.ts";
import type { WriteCell } from "./write-cell.ts";
import { CLUSTER_SIZE } from "./write-images.ts";

export const WRITE_CELL_NAMES = [
  "write-qd1-pinned",
  "write-jobs8",
  "write-1m",
  "write-fsync",
  "punch",
  "write-per-cluster",
  "fill-1m",
  "mkfs",
  "copy-tree",
  ...COPY_CELL_NAMES,
] as const;
export type WriteCellName = (typeof WRITE_CELL_NAMES)[number];

/** mkfs writes so little that on a small disk the start of the process would be measured. */
const MKFS_SIZE_FACTOR = 32;

const SMALL_WRITE = 4096;
/** In place. The ramp is not measured: a daemon that has just started is slower. */
const IN_PLACE = ["--ioengine=psync", "--direct=1", "--ramp_time=250ms"];
const RANDOM_4K = ["--rw=randwrite", `--bs=${SMALL_WRITE}`, ...IN_PLACE];
const IMAGES_WITH_DATA = ["allocated", "raw"] as const;

export const WRITE_CELLS: Readonly<Record<WriteCellName, WriteCell>> = {
  "write-qd1-pinned": {
    title: "4k random write in place, QD1, server and load on one CPU",
    unit: "k/s",
    images: IMAGES_WITH_DATA,
    outcome: "full",
    measure: (target) =>
      onOneCpu(target, async (prefix) => (await write(target, RANDOM_4K, prefix)).iops / 1000),
  },
  "write-jobs8": {
    title: "4k random write in place, 8 jobs",
    unit: "k/s",
    images: IMAGES_WITH_DATA,
    outcome: "full",
    measure: async (target) => (await write(target, [...RANDOM_4K, "--numjobs=8"])).iops / 1000,
  },
  "write-1m": {
    title: "1M write in place, O_DIRECT",
    unit: "MiB/s",
    images: IMAGES_WITH_DATA,
    outcome: "full",
    measure: async (target) =>
      (await write(target, ["--rw=write", "--bs=1M", ...IN_PLACE])).bytesPerSecond / MIB,
  },
  "write-fsync": {
    title: "4k random write in place + fsync, one CPU",
    unit: "k/s",
    images: IMAGES_WITH_DATA,
    outcome: "full",
    measure: (target) =>
      onOneCpu(
        target,
        async (prefix) => (await write(target, [...RANDOM_4K, "--fsync=1"], prefix)).iops / 1000,
      ),
  },
  punch: {
    title: "64k punches over data, with an fsync at the end, one CPU",
    unit: "k/s",
    images: IMAGES_WITH_DATA,
    outcome: "punched",
    measure: (target) =>
      onOneCpu(target, async (prefix) => {
        const args = ["--rw=trim", `--bs=${CLUSTER_SIZE}`, "--ioengine=falloc"];
        const { requests, iops } = await onceOverDevice(target, "trim", args, prefix);
        // What a server puts off until then belongs to the price of a punch.
        const { elapsedMs } = await run(["sync", target.server.device], { signal: target.signal });
        return requests / (requests / iops + elapsedMs / 1000) / 1000;
      }),
  },
  "write-per-cluster": {
    title: "one 4k write per 64k cluster, QD1, one CPU",
    unit: "k/s",
    images: ["empty", "overlay"],
    outcome: "full",
    measure: (target) =>
      onOneCpu(target, async (prefix) => {
        const skip = CLUSTER_SIZE - SMALL_WRITE;
        const args = [`--rw=write:${skip}`, `--bs=${SMALL_WRITE}`, "--ioengine=psync"];
        const result = await onceOverDevice(target, "write", [...args, "--direct=1"], prefix);
        return result.iops / 1000;
      }),
  },
  "fill-1m": {
    title: "1M sequential fill, O_DIRECT",
    unit: "MiB/s",
    images: ["empty", "overlay"],
    outcome: "full",
    measure: async (target) => {
      const args = ["--rw=write", "--bs=1M", "--ioengine=psync", "--direct=1"];
      return (await onceOverDevice(target, "write", args)).bytesPerSecond / MIB;
    },
  },
  mkfs: {
    title: `mkfs.ext4 through losetup, disk ${MKFS_SIZE_FACTOR} times as large`,
    unit: "/s",
    images: ["empty"],
    outcome: "any",
    sizeFactor: MKFS_SIZE_FACTOR,
    measure: makeFileSystemOnLoop,
  },
  "copy-tree": {
    title: "tree copied through losetup + ext4, with sync",
    unit: "MiB/s",
    images: ["empty"],
    outcome: "any",
    measure: copyTreeToLoop,
  },
  ...COPY_CELLS,
};

export function writeCellsOf(image: WriteImageName): readonly WriteCellName[] {
  return WRITE_CELL_NAMES.filter((name) => WRITE_CELLS[name].images.includes(image));
}

/** These two need root. */
export function needsLoop(cell: WriteCellName): boolean {
  return cell === "mkfs" || cell === "copy-tree";
}

function write(
  target: Target,
  args: readonly string[],
  prefix: readonly string[] = [],
): Promise<FioResult> {
  return fioForSeconds(target, { direction: "write", args, prefix });
}
