/** One fio job on a server's device, and what it says of it. */

import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Target } from "./cell.ts";
import { numberAt } from "./json-number.ts";
import { run } from "./run-command.ts";

export type Direction = "read" | "write" | "trim";

export interface FioJob {
  readonly direction: Direction;
  readonly args: readonly string[];
  /** Put before fio on the command line, to choose its CPU. */
  readonly prefix?: readonly string[];
}

export interface FioResult {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly requests: number;
}

/** fio starts its jobs, and gathers them, within this. */
const FIO_MARGIN_MS = 30_000;

/** Repeat the job on the device until the target's time is over. */
export function fioForSeconds(target: Target, job: FioJob): Promise<FioResult> {
  const { seconds } = target;
  const timeMs = Math.round(seconds * 1000);
  const args = ["--norandommap", "--time_based", `--runtime=${timeMs}ms`, ...job.args];
  return fio(target, { ...job, args }, timeMs + FIO_MARGIN_MS);
}

/** Run the job once over the part of the device that it names. */
export function fioOnce(target: Target, job: FioJob): Promise<FioResult> {
  return fio(target, job);
}

async function fio(
  { server, signal }: Target,
  { direction, args, prefix = [] }: FioJob,
  timeoutMs?: number,
): Promise<FioResult> {
  const [program = "fio", ...programArgs] = [...prefix, "fio"];
  const common = [
    "--name=cell",
    `--filename=${server.device.replaceAll(":", "\\:")}`,
    ...["--allow_file_create=0", "--fallocate=none"],
    ...(direction === "read" ? ["--readonly"] : []),
    ...["--randseed=20261120", "--group_reporting", "--output-format=json"],
  ];
  const { stdout } = await run([program, ...programArgs, ...common, ...args], {
    signal,
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  const report: unknown = JSON.parse(stdout.slice(stdout.indexOf("{")));
  const reported = (name: string): number => {
    const value = numberAt(report, ["jobs", "0", direction, name]);
    if (value === undefined || !(value > 0)) throw new Error(`fio reports no ${direction} ${name}`);
    return value;
  };
  return {
    iops: reported("iops"),
    bytesPerSecond: reported("bw_bytes"),
    requests: reported("total_ios"),
  };
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
