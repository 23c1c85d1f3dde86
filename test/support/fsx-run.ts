// Runs the fsx program on a device: builds it, gives each process a range, collects the reports.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { build } from "esbuild";
import type { Foreground } from "./foreground.ts";
import { withProgram } from "./foreground.ts";
import { FSX_STARTED, type FsxPlan, type FsxReport } from "./fsx-plan.ts";
import { asRecord, numberIn } from "./json.ts";
import type { Random } from "./random.ts";
import { REPOSITORY } from "./repository.ts";
import { until } from "./run.ts";
import { withScratch } from "./scratch.ts";
import { transportHas } from "./transport.ts";

const PAGE_SIZE = 4096;

/** Only finds hangs. */
const END_TIMEOUT_MS = 180_000;

export interface FsxSession
  extends Pick<FsxPlan, "device" | "expected" | "unit" | "maxLength" | "access" | "end"> {
  /** Where the range of the first process begins; without it at the start of the device. */
  readonly from?: number;
  /** Size of the device, bytes: the range of the last process ends there. */
  readonly size: number;
  readonly processes: number;
  readonly mappings?: boolean;
  readonly attempted?: string;
  readonly tolerated?: readonly string[];
}

function mappingsOf({ mappings = true }: FsxSession): boolean {
  return mappings && transportHas("shared-mmap");
}

/** Where the ranges of the processes meet. */
function boundaries(random: Random, session: FsxSession): number[] {
  const { from = 0, size, processes, access } = session;
  // One page seen both through the page cache and past it, by two processes, need not be coherent.
  const unit = access === "mixed" || (access === "direct" && mappingsOf(session)) ? PAGE_SIZE : 1;
  const inner = Array.from({ length: processes - 1 }, (_, index) => {
    const share = ((size - from) / processes) * (index + 1);
    return Math.floor((from + share + random.between(-5000, 5000)) / unit) * unit;
  });
  return [from, ...inner, size];
}

function planProcesses(random: Random, session: FsxSession): FsxPlan[] {
  const bounds = boundaries(random, session);
  return Array.from({ length: session.processes }, (_, index) => {
    const start = bounds[index] ?? 0;
    return {
      device: session.device,
      expected: session.expected,
      attempted: session.attempted ?? "",
      start,
      length: (bounds[index + 1] ?? session.size) - start,
      unit: session.unit,
      maxLength: session.maxLength,
      seed: random.u32(),
      access: session.access,
      mappings: mappingsOf(session),
      fallocate: transportHas("fallocate"),
      end: session.end,
      tolerated: session.tolerated ?? [],
    };
  });
}

/** Builds the program as one file. It is CommonJS, which finds koffi through NODE_PATH. */
async function buildProgram(directory: string): Promise<string> {
  const outfile = join(directory, "fsx.cjs");
  await build({
    entryPoints: [join(REPOSITORY, "test/support/fsx-process.ts")],
    outfile,
    bundle: true,
    platform: "node",
    format: "cjs",
    external: ["koffi"],
    logLevel: "warning",
  });
  return outfile;
}

async function reportOf(program: Foreground): Promise<FsxReport> {
  const status = await program.end(END_TIMEOUT_MS);
  if (status !== 0) {
    throw new Error(`fsx ended with ${status}: ${program.output}`);
  }
  const report = asRecord(JSON.parse(program.output.slice(FSX_STARTED.length)));
  return { operations: numberIn(report, "operations"), failures: numberIn(report, "failures") };
}

/** Starts the processes one inside the other, so that each is ended whatever happens. */
async function startAll(
  program: string,
  plans: readonly string[],
  running: readonly Foreground[],
  body: (running: readonly Foreground[]) => Promise<FsxReport[]>,
): Promise<FsxReport[]> {
  const [plan, ...rest] = plans;
  if (plan === undefined) {
    return await body(running);
  }
  return await withProgram(
    process.execPath,
    [program, plan],
    (started) => startAll(program, rest, [...running, started], body),
    { NODE_PATH: join(REPOSITORY, "node_modules") },
  );
}

/**
 * Runs processes on ranges of the device that do not overlap, to their end. The file `expected` is
 * what the device must contain then.
 *
 * @param meanwhile called when all processes have begun
 */
export async function runFsx(
  random: Random,
  session: FsxSession,
  meanwhile: () => Promise<void> = async () => {},
): Promise<FsxReport[]> {
  return await withScratch("fsx", async (directory) => {
    const program = await buildProgram(directory);
    const files: string[] = [];
    for (const [index, plan] of planProcesses(random, session).entries()) {
      const file = join(directory, `plan-${index}.json`);
      await writeFile(file, JSON.stringify(plan));
      files.push(file);
    }
    return await startAll(program, files, [], async (running) => {
      await until(
        "all fsx processes have begun",
        () => running.every(({ isRunning, output }) => !isRunning || output !== ""),
        END_TIMEOUT_MS,
      );
      await meanwhile();
      return await Promise.all(running.map(reportOf));
    });
  });
}
