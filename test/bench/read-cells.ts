/** The measurements of reading, and for which images they are made. */

import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { type Cell, MIB, type Target } from "./cell.ts";
import { type FioResult, fioForSeconds } from "./fio.ts";
import type { ReadImageName } from "./image-names.ts";
import { onOneCpu } from "./one-cpu.ts";
import { dropDeviceCache } from "./page-cache.ts";
import { processorSeconds } from "./proc.ts";
import { run } from "./run-command.ts";

export const READ_CELL_NAMES = [
  "qd1-pinned",
  "qd1",
  "jobs8",
  "qd16",
  "read-1m",
  "dd",
  "cp",
  "cpu-4k",
  "cpu-1m",
  "slow-1",
  "slow-4",
  "slow-16",
] as const;
export type ReadCellName = (typeof READ_CELL_NAMES)[number];

/** Of an image on a slow medium, by the processes that read. */
const SLOW: readonly ReadCellName[] = ["slow-1", "slow-4", "slow-16"];

/** Not for everybody's table: what a request costs, which others on the machine do not change. */
const ONLY_IF_ASKED_FOR: ReadonlySet<ReadCellName> = new Set(["cpu-4k", "cpu-1m"]);

const RANDOM_4K = ["--rw=randread", "--bs=4k", "--ioengine=psync", "--direct=1"];

export const READ_CELLS: Readonly<Record<ReadCellName, Cell>> = {
  "qd1-pinned": {
    title: "4k random read, QD1, server and load on one CPU",
    unit: "k/s",
    measure: (target) =>
      onOneCpu(target, async (prefix) => (await read(target, RANDOM_4K, prefix)).iops / 1000),
  },
  qd1: {
    title: "4k random read, QD1, unpinned",
    unit: "k/s",
    measure: async (target) => (await read(target, RANDOM_4K)).iops / 1000,
  },
  jobs8: {
    title: "4k random read, 8 jobs",
    unit: "k/s",
    measure: async (target) => (await read(target, [...RANDOM_4K, "--numjobs=8"])).iops / 1000,
  },
  qd16: {
    title: "4k random read, io_uring QD16, O_DIRECT",
    unit: "k/s",
    measure: async (target) => {
      const job = ["--rw=randread", "--bs=4k", "--ioengine=io_uring", "--iodepth=16", "--direct=1"];
      return (await read(target, job)).iops / 1000;
    },
  },
  "read-1m": {
    title: "1M read, O_DIRECT",
    unit: "MiB/s",
    measure: async (target) => {
      const job = ["--rw=read", "--bs=1M", "--ioengine=psync", "--direct=1"];
      return (await read(target, job)).bytesPerSecond / MIB;
    },
  },
  dd: {
    title: "dd bs=1M through the page cache",
    unit: "MiB/s",
    measure: async ({ server, signal }) => {
      await dropDeviceCache(server.device, signal);
      // dd's own clock: without the start of the process.
      const { stderr } = await run(["dd", `if=${server.device}`, "of=/dev/null", "bs=1M"], {
        signal,
      });
      const [, bytes, seconds] = /^(\d+) bytes.* copied, ([0-9.e+-]+) s/m.exec(stderr) ?? [];
      if (Number(bytes) !== server.virtualSize)
        throw new Error(`dd copied ${bytes} of ${server.virtualSize} bytes`);
      return server.virtualSize / MIB / Number(seconds);
    },
  },
  "cpu-4k": {
    title: "4k random reads, 4 jobs, in a second of the server's processor time",
    unit: "k/s",
    measure: async (target) =>
      (await perProcessorSecond(target, [...RANDOM_4K, "--numjobs=4"])) / 1000,
  },
  "cpu-1m": {
    title: "1M reads, O_DIRECT, in a second of the server's processor time",
    unit: "MiB/s",
    measure: (target) =>
      perProcessorSecond(target, ["--rw=read", "--bs=1M", "--ioengine=psync", "--direct=1"]),
  },
  "slow-1": slowCell(1),
  "slow-4": slowCell(4),
  "slow-16": slowCell(16),
  cp: {
    title: "cp --sparse=always to tmpfs",
    unit: "MiB/s",
    measure: async ({ server, copyDirectory, signal }) => {
      await dropDeviceCache(server.device, signal);
      const copy = join(copyDirectory, "copy.raw");
      try {
        const { elapsedMs } = await run(["cp", "--sparse=always", server.device, copy], { signal });
        const { size } = await stat(copy);
        if (size !== server.virtualSize)
          throw new Error(`cp copied ${size} of ${server.virtualSize} bytes`);
        return server.virtualSize / MIB / (elapsedMs / 1000);
      } finally {
        await rm(copy, { force: true });
      }
    },
  },
};

/** Reads that neither the server's page cache nor the host's has: the medium is asked for each. */
function slowCell(jobs: number): Cell {
  return {
    title: `4k random read from a slow medium, cold caches, ${jobs} at once`,
    unit: "/s",
    measure: async (target) => {
      await dropDeviceCache(target.imagePath, target.signal);
      return (await read(target, [...RANDOM_4K, `--numjobs=${jobs}`])).iops;
    },
  };
}

/** Requests that a server answers in a second of processor time, its threads' and the kernel's for it. */
async function perProcessorSecond(target: Target, args: readonly string[]): Promise<number> {
  const { pid } = target.server;
  const before = await processorSeconds(pid);
  const { requests } = await read(target, args);
  return requests / ((await processorSeconds(pid)) - before);
}

/** Compressed data is bound by inflate: cells that measure the transport say nothing more there. */
export function readCellsOf(image: ReadImageName): readonly ReadCellName[] {
  if (image === "zlib") return ["qd1-pinned", "qd1", "jobs8", "dd"];
  if (image === "slow") return SLOW;
  return READ_CELL_NAMES.filter((cell) => !ONLY_IF_ASKED_FOR.has(cell) && !SLOW.includes(cell));
}

function read(
  target: Target,
  args: readonly string[],
  prefix: readonly string[] = [],
): Promise<FioResult> {
  return fioForSeconds(target, { direction: "read", args, prefix });
}
