/** Several threads with a disk each, as the daemon has them, at work on parts of it that share clusters. */

import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { describe, it } from "vitest";
import { attachDisk } from "../../src/block/attach-disk.ts";
import { closeChain, type OpenChain, openChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { IMAGE_NAME } from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import type { DiskPart } from "../support/crash-workload.ts";
import { type Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { byScale } from "../support/scale.ts";
import { bundleWorker } from "../unit/bundled-worker.ts";
import type { EngineThreadData } from "./engine-thread.ts";
import { MODEL_RECIPES } from "./model-recipes.ts";
import { ModelRun } from "./model-session.ts";
import { randomPolicy } from "./random-work.ts";

const THREADS = 4;
const SESSIONS = byScale(2, 5);
const STEPS = byScale(80, 600);
/** Disks of more are for one thread: each one keeps the whole content. */
const VIRTUAL_SIZE_MAX = 2 ** 27;

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

describe("threads that write to neighbouring parts of a disk do not disturb each other", () => {
  const recipes = MODEL_RECIPES.filter(
    ({ virtualSize, growth }) => virtualSize <= VIRTUAL_SIZE_MAX && growth === undefined,
  );

  it.each(recipes.map((recipe) => [recipe.name, recipe] as const))("%s", async (_, recipe) => {
    const script = await bundleWorker(new URL("./engine-thread.ts", import.meta.url));
    await withMemoryScratch("threads", async (root) => {
      await new ModelRun(root, recipe).run(SESSIONS, async (directory, content, random) => {
        const chain = openChain(join(directory, IMAGE_NAME), {
          format: recipe.format,
          backingPolicy: "any",
          forceShare: false,
          writing: { policy: randomPolicy(random, recipe), threads: THREADS + 1 },
        });
        try {
          await workInThreads(script, chain, { directory, recipe, content, random });
        } finally {
          closeChain(chain);
        }
      });
    });
  });
});

async function workInThreads(
  script: string,
  chain: OpenChain,
  { directory, recipe, content, random }: ThreadsWork,
): Promise<void> {
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
    return { ...more, seed: SEED, label, steps: STEPS };
  });
  const ends = await Promise.allSettled(
    threads.map((data) => runThread(script, data, () => disk.maintain())),
  );
  for (const end of ends) {
    if (end.status === "rejected") throw end.reason;
  }
  disk.close();
  for (const { part, resultPath } of threads) {
    const result = SparseFile.load(resultPath);
    content.write(part.first, result.bytesAt(part.first, part.end - part.first));
  }
}

interface ThreadsWork {
  readonly directory: string;
  readonly recipe: ImageRecipe;
  readonly content: SparseFile;
  readonly random: Random;
}
