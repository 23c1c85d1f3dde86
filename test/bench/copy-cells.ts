/**
 * The measurements of what gets into an overlay from its backing file: by being read, beside QEMU with its
 * copy-on-read filter, and by streaming, beside `qemu-img convert`; and of converting.
 */

import { rename } from "node:fs/promises";
import { type FileTarget, MIB, type Target } from "./cell.ts";
import { CONVERT_CELL_NAMES, CONVERT_CELLS } from "./convert-cells.ts";
import type { FioResult } from "./fio.ts";
import { MAIN } from "./launch-tsimgfs.ts";
import { onOneCpu } from "./one-cpu.ts";
import { run } from "./run-command.ts";
import { onceOverDevice } from "./whole-device.ts";
import type { WriteCell } from "./write-cell.ts";
import { CLUSTER_OPTION, CLUSTER_SIZE } from "./write-images.ts";

export const COPY_CELL_NAMES = [
  "copy-1m",
  "copy-4k",
  "copy-4k-unpinned",
  "copied-1m",
  "copied-4k",
  "stream",
  ...CONVERT_CELL_NAMES,
] as const;
export type CopyCellName = (typeof COPY_CELL_NAMES)[number];

const DIRECT = ["--ioengine=psync", "--direct=1"];
const SEQUENTIAL_1M = ["--rw=read", "--bs=1M", ...DIRECT];
const RANDOM_4K = ["--rw=randread", "--bs=4k", ...DIRECT];
/** Of random reads: then about a fifth of them find a cluster that was read before. */
const CLUSTERS_PER_READ = 2;

const OF_OVERLAYS = { images: ["overlay"], copyOnRead: true } as const;

export const COPY_CELLS: Readonly<Record<CopyCellName, WriteCell>> = {
  "copy-1m": {
    ...OF_OVERLAYS,
    title: "first read, 1M, O_DIRECT, copy-on-read",
    unit: "MiB/s",
    outcome: "full",
    measure: async (target) =>
      (await onceOverDevice(target, "read", SEQUENTIAL_1M)).bytesPerSecond / MIB,
  },
  "copy-4k": {
    ...OF_OVERLAYS,
    title: "first read, 4k random, O_DIRECT, QD1, one CPU, copy-on-read",
    unit: "k/s",
    outcome: "any",
    measure: (target) =>
      onOneCpu(target, async (prefix) => (await randomReads(target, prefix)).iops / 1000),
  },
  "copy-4k-unpinned": {
    ...OF_OVERLAYS,
    title: "first read, 4k random, O_DIRECT, QD1, unpinned, copy-on-read",
    unit: "k/s",
    outcome: "any",
    measure: async (target) => (await randomReads(target, [])).iops / 1000,
  },
  "copied-1m": {
    ...OF_OVERLAYS,
    title: "second read, 1M, O_DIRECT, copy-on-read",
    unit: "MiB/s",
    outcome: "full",
    measure: async (target) => {
      await onceOverDevice(target, "read", SEQUENTIAL_1M);
      return (await onceOverDevice(target, "read", SEQUENTIAL_1M)).bytesPerSecond / MIB;
    },
  },
  "copied-4k": {
    ...OF_OVERLAYS,
    title: "second read, 4k random, O_DIRECT, QD1, one CPU, copy-on-read",
    unit: "k/s",
    outcome: "full",
    measure: async (target) => {
      await onceOverDevice(target, "read", SEQUENTIAL_1M);
      return onOneCpu(target, async (prefix) => (await randomReads(target, prefix)).iops / 1000);
    },
  },
  stream: {
    ...OF_OVERLAYS,
    title: "stream into the overlay; of QEMU, `qemu-img convert` of it",
    unit: "MiB/s",
    outcome: "full",
    measureFile: measureStream,
  },
  ...CONVERT_CELLS,
};

/** Not of writing, although the images are those that are written to. */
export function isCopyCell(cell: string): boolean {
  return COPY_CELL_NAMES.some((name) => name === cell);
}

function randomReads(target: Target, prefix: readonly string[]): Promise<FioResult> {
  const reads = Math.floor(target.server.virtualSize / CLUSTER_SIZE / CLUSTERS_PER_READ);
  return onceOverDevice(target, "read", [...RANDOM_4K, `--number_ios=${reads}`], prefix);
}

/** The whole disk at the command's own speed, with the start of its process. */
async function measureStream({ name, image, signal }: FileTarget): Promise<number> {
  const { path, virtualSize } = image;
  const rate = (elapsedMs: number): number => virtualSize / MIB / (elapsedMs / 1000);
  if (name === "tsimgfs") {
    return rate((await run([process.execPath, MAIN, "stream", path], { signal })).elapsedMs);
  }
  const converted = `${path}.converted`;
  const { elapsedMs } = await run(
    ["qemu-img", "convert", "-O", "qcow2", "-o", CLUSTER_OPTION, path, converted],
    { signal },
  );
  await rename(converted, path);
  return rate(elapsedMs);
}
