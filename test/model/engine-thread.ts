/** A thread that works on its own part of a disk while others work on theirs. */

import { parentPort, workerData } from "node:worker_threads";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { OpenChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { type DiskPart, type DiskShape, StepDrawer } from "../support/crash-workload.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { workOnDisk } from "./random-work.ts";

export interface EngineThreadData {
  readonly chain: OpenChain;
  readonly shape: DiskShape;
  /** The bytes of the disk that this thread reads and writes. */
  readonly part: DiskPart;
  readonly slot: number;
  readonly seed: number;
  readonly label: string;
  readonly steps: number;
  /** A raw file with what the disk contains; of `part`, it gets what the disk contains in the end. */
  readonly contentPath: string;
  readonly resultPath: string;
}

/** What the thread asks the main thread for. */
export const MAINTAIN = "maintain";

const data: EngineThreadData = workerData;
const disk = attachDisk(
  data.chain,
  { clusterCache: new ClusterCache() },
  { slot: data.slot, requestMaintenance: () => parentPort?.postMessage(MAINTAIN) },
);
const content = SparseFile.load(data.contentPath);
const drawer = new StepDrawer(new Random(data.label, data.seed), data.shape, data.part);
workOnDisk(disk, drawer, data.steps, content);
content.save(data.resultPath);
