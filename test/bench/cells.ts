/** The measurements: what each cell does to a device, and for which images it is made. */

import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { ImageName } from "./images.ts";
import { type CommandLine, run } from "./run-command.ts";
import type { Server } from "./servers.ts";

export const CELL_NAMES = ["qd1-pinned", "qd1", "jobs8", "qd16", "read-1m", "dd", "cp"] as const;
export type CellName = (typeof CELL_NAMES)[number];

export interface Cell {
  readonly title: string;
  readonly unit: "k/s" | "MiB/s";
  /** One sample, in `unit`. */
  measure(target: Target): Promise<number>;
}

export interface Target {
  readonly server: Server;
  /** Of one fio measurement. */
  readonly seconds: number;
  /** The CPUs that we may run on. */
  readonly cpus: readonly number[];
  /** On tmpfs, for copies. */
  readonly copyDirectory: string;
  readonly signal: AbortSignal;
}

const MIB = 1024 * 1024;
/** fio starts its jobs, and gathers them, within this. */
const FIO_MARGIN_MS = 30_000;

const RANDOM_4K = ["--rw=randread", "--bs=4k", "--ioengine=psync", "--direct=1"];

export const CELLS: Readonly<Record<CellName, Cell>> = {
  "qd1-pinned": {
    title: "4k random read, QD1, server and load on one CPU",
    unit: "k/s",
    measure: async (target) => {
      const [cpu = 0] = target.cpus;
      await pin(target.server.pid, [cpu], target.signal);
      try {
        return (await fio(target, RANDOM_4K, ["taskset", "-c", String(cpu)])).iops / 1000;
      } finally {
        await pin(target.server.pid, target.cpus);
      }
    },
  },
  qd1: {
    title: "4k random read, QD1, unpinned",
    unit: "k/s",
    measure: async (target) => (await fio(target, RANDOM_4K)).iops / 1000,
  },
  jobs8: {
    title: "4k random read, 8 jobs",
    unit: "k/s",
    measure: async (target) => (await fio(target, [...RANDOM_4K, "--numjobs=8"])).iops / 1000,
  },
  qd16: {
    title: "4k random read, io_uring QD16, O_DIRECT",
    unit: "k/s",
    measure: async (target) => {
      const job = ["--rw=randread", "--bs=4k", "--ioengine=io_uring", "--iodepth=16", "--direct=1"];
      return (await fio(target, job)).iops / 1000;
    },
  },
  "read-1m": {
    title: "1M read, O_DIRECT",
    unit: "MiB/s",
    measure: async (target) => {
      const job = ["--rw=read", "--bs=1M", "--ioengine=psync", "--direct=1"];
      return (await fio(target, job)).bytesPerSecond / MIB;
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

/** Compressed data is bound by inflate: cells that measure the transport say nothing more there. */
export function cellsOf(image: ImageName): readonly CellName[] {
  return image === "zlib" ? ["qd1-pinned", "qd1", "jobs8", "dd"] : CELL_NAMES;
}

/**
 * Drop what the kernel has cached of the device, and of nothing else: posix_fadvise(DONTNEED) by
 * dd.
 * Throws if it stays, since the cell would then measure the page cache.
 */
export async function dropDeviceCache(device: string, signal: AbortSignal): Promise<void> {
  await run(["dd", `if=${device}`, "iflag=nocache", "count=0", "status=none"], { signal });
  // Of others' files, mincore(2) calls every page resident.
  if (process.getuid?.() !== 0 && process.getuid?.() !== (await stat(device)).uid) return;
  const { stdout } = await run(
    ["fincore", "--bytes", "--raw", "--noheadings", "-o", "RES", device],
    { signal },
  );
  if (Number(stdout) > MIB)
    throw new Error(`${device}: ${Number(stdout)} bytes stay in the page cache`);
}

/** Whether this kernel lets fio use io_uring. */
export async function hasIoUring(directory: string, signal: AbortSignal): Promise<boolean> {
  const file = join(directory, "io-uring-probe");
  try {
    await run(
      [
        "fio",
        "--name=probe",
        `--filename=${file}`,
        "--rw=read",
        "--size=4k",
        "--ioengine=io_uring",
      ],
      {
        signal,
      },
    );
    return true;
  } catch {
    signal.throwIfAborted();
    return false;
  } finally {
    await rm(file, { force: true });
  }
}

async function pin(pid: number, cpus: readonly number[], signal?: AbortSignal): Promise<void> {
  const command: CommandLine = ["taskset", "-a", "-c", "-p", cpus.join(","), String(pid)];
  await run(command, signal === undefined ? {} : { signal });
}

interface FioResult {
  readonly iops: number;
  readonly bytesPerSecond: number;
}

async function fio(
  target: Target,
  job: readonly string[],
  prefix: readonly string[] = [],
): Promise<FioResult> {
  const { server, seconds, signal } = target;
  const [program, ...args] = [...prefix, "fio"];
  const common = [
    ...[
      "--name=cell",
      `--filename=${server.device.replaceAll(":", "\\:")}`,
      "--readonly",
      "--allow_file_create=0",
    ],
    ...["--randseed=20261120", "--norandommap", "--group_reporting", "--output-format=json"],
    ...["--time_based", `--runtime=${Math.round(seconds * 1000)}ms`],
  ];
  const { stdout } = await run([program ?? "fio", ...args, ...common, ...job], {
    signal,
    timeoutMs: seconds * 1000 + FIO_MARGIN_MS,
  });
  const report: unknown = JSON.parse(stdout.slice(stdout.indexOf("{")));
  return {
    iops: numberAt(report, ["jobs", "0", "read", "iops"]),
    bytesPerSecond: numberAt(report, ["jobs", "0", "read", "bw_bytes"]),
  };
}

/** The positive number at a path in a parsed JSON document. */
function numberAt(document: unknown, path: readonly string[]): number {
  let value = document;
  for (const key of path) {
    value = typeof value === "object" && value !== null ? Reflect.get(value, key) : undefined;
  }
  if (typeof value !== "number" || !(value > 0))
    throw new Error(`fio reports no ${path.join(".")}`);
  return value;
}
