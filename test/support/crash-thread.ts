/** A thread that works on its own part of a recorded disk while others work on theirs, and reads all of it. */

import { parentPort, workerData } from "node:worker_threads";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { OpenChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import type { DoneByThread, ThreadMessage } from "./crash-threads.ts";
import {
  applyStep,
  type DiskPart,
  type DiskShape,
  type DiskStep,
  describeStep,
  StepDrawer,
  StepRunner,
} from "./crash-workload.ts";
import { attachLogged } from "./logged-file.ts";
import { Random } from "./random.ts";
import { SparseFile } from "./recording-sparse-file.ts";
import { SharedLog } from "./shared-log.ts";

export interface CrashThreadData {
  readonly chain: OpenChain;
  readonly shape: DiskShape;
  /** What this thread alone writes to. */
  readonly part: DiskPart;
  /** What nobody writes to. */
  readonly common: DiskPart;
  readonly slot: number;
  readonly seed: number;
  readonly label: string;
  readonly steps: number;
  readonly log: SharedArrayBuffer;
  /** The files of the log. */
  readonly paths: readonly string[];
  /** A raw file with what the disk contains. */
  readonly contentPath: string;
}

/** Bytes of a read at the most. */
const READ_MAX = 128 * 1024;

const data: CrashThreadData = workerData;
const send = (message: ThreadMessage): void => parentPort?.postMessage(message);
const log = new SharedLog(data.log);
const random = new Random(data.label, data.seed);
const disk = attachDisk(
  data.chain,
  { clusterCache: new ClusterCache() },
  { slot: data.slot, requestMaintenance: () => send("maintain") },
  attachLogged(data.paths, log, new Random(`pauses of ${data.label}`, data.seed)),
);
const content = SparseFile.load(data.contentPath);
const drawer = new StepDrawer(random, data.shape, data.part);
const runner = new StepRunner(disk);

function rangeIn({ first, end }: DiskPart): { offset: number; length: number } {
  const offset = first + random.below(end - first);
  return { offset, length: Math.min(random.between(1, READ_MAX), end - offset) };
}

function draw(): DiskStep {
  return random.below(8) === 0 ? { kind: "read", ...rangeIn(data.common) } : drawer.draw();
}

for (let number = 0; number < data.steps; number++) {
  if (random.below(6) === 0) {
    // Of others, who may be writing there: nobody can say what it has to be.
    const { offset, length } = rangeIn({ first: 0, end: data.shape.virtualSize });
    runner.read(offset, length);
  }
  const step = draw();
  const start = log.count;
  try {
    runner.run(step, content);
  } catch (error) {
    throw new Error(
      `thread ${data.slot}, step ${number}, ${describeStep(step)}: ${String(error)}`,
      {
        cause: error,
      },
    );
  }
  applyStep(step, content);
  const done: DoneByThread = { thread: data.slot, step, start, end: log.count };
  send(done);
}
