/** Threads with a disk each, as the daemon has them, at work on parts of it that share clusters. */

import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { Disk } from "../../src/block/disk.ts";
import type { OpenChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import type { DiskPart } from "../support/crash-workload.ts";
import { type Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { EngineThreadData } from "./engine-thread.ts";

/** Threads that work; the main thread has a disk, too. */
export const THREADS = 4;

export interface ThreadsWork {
  /** Of `bundleWorker`. */
  readonly script: string;
  /** Open for one thread more. */
  readonly chain: OpenChain;
  readonly directory: string;
  readonly recipe: ImageRecipe;
  /** What the disk contains; changed as the disk is. */
  readonly content: SparseFile;
  readonly random: Random;
  /** Of each thread. */
  readonly steps: number;
  /** What the main thread does meanwhile; it lets go of the event loop now and then. */
  readonly meanwhile?: (disk: Disk) => Promise<void>;
}

/** Parts that meet anywhere within clusters, and cover the disk. */
function randomParts(random: Random, { virtualSize }: ImageRecipe): DiskPart[] {
  const borders = Array.from({ length: THREADS - 1 }, () => random.between(1, virtualSize - 1));
  const all = [0, ...borders.sort((a, b) => a - b), virtualSize];
  const parts = all.slice(1).map((end, index) => ({ first: all[index] ?? 0, end }));
  return parts.filter(({ first, end }) => first < end);
}

/** Runs a thread to its end; `onRequest` is called when it asks for maintenance. */
function runThread(script: string, data: EngineThreadData, onRequest: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(script, { eval: true, workerData: data });
    worker.on("message", onRequest);
    worker.on("error", reject);
    worker.on("exit", () => resolve());
  });
}

/** Carries out random steps, and closes the disk. */
export async function workInThreads(work: ThreadsWork): Promise<void> {
  const { script, chain, directory, recipe, content, random, steps, meanwhile } = work;
  const contentPath = join(directory, "content");
  content.save(contentPath);
  const disk = attachDisk(
    chain,
    { clusterCache: new ClusterCache() },
    { slot: THREADS, requestMaintenance: undefined },
  );
  const threads = randomParts(random, recipe).map((part, slot): EngineThreadData => {
    const resultPath = join(directory, `result-${slot}`);
    const label = `thread ${slot} ${random.u32()} of ${recipe.name}`;
    const shape = { virtualSize: recipe.virtualSize, clusterSize: recipe.clusterSize };
    const more = { chain, shape, part, slot, contentPath, resultPath };
    return { ...more, seed: SEED, label, steps };
  });
  const ends = await Promise.allSettled([
    ...threads.map((data) => runThread(script, data, () => disk.maintain())),
    meanwhile?.(disk),
  ]);
  for (const end of ends) {
    if (end.status === "rejected") throw end.reason;
  }
  disk.close();
  for (const { part, resultPath } of threads) {
    const result = SparseFile.load(resultPath);
    content.write(part.first, result.bytesAt(part.first, part.end - part.first));
  }
}
