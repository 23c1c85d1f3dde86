/** Crews of threads: as few wait for work as is enough, and all come when they are needed. */

import { describe, expect, it } from "vitest";
import { createThreadCrew } from "../../../src/threads/thread-crew.ts";
import { asRecord } from "../../support/json.ts";
import { Random, SEED } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { bundleWorker, runWorker } from "../bundled-worker.ts";
import { QUEUE } from "./thread-crew-queue.ts";
import type { ThreadCrewWorkerData } from "./thread-crew-worker.ts";

const THREADS = 6;
/** Until threads have started, ms; if it is too short, less is tested. */
const START_MS = 300;

/** Runs groups of jobs through a crew; each group is posted at once. Returns the jobs that each thread did. */
async function runGroups(groupSizes: readonly number[], pauseMs: () => number): Promise<number[]> {
  const groupOf = groupSizes.flatMap((size, group) => Array<number>(size).fill(group));
  const queue = new SharedArrayBuffer((QUEUE.started + groupSizes.length) * 4);
  const words = new Int32Array(queue);
  const jobs = groupOf.length;
  const data: ThreadCrewWorkerData = { crew: createThreadCrew(), queue, jobs, groupOf, groupSizes };
  const script = await bundleWorker(new URL("./thread-crew-worker.ts", import.meta.url));
  const ends = Array.from({ length: THREADS }, () => runWorker(script, data));
  // All have started, and those that nobody needs are parked.
  await new Promise((resolve) => setTimeout(resolve, START_MS));
  for (const size of groupSizes) {
    Atomics.add(words, QUEUE.posted, size);
    Atomics.notify(words, QUEUE.posted);
    await new Promise((resolve) => setTimeout(resolve, pauseMs()));
  }
  const results = await Promise.all(ends);
  return results.map((result) => Number(asRecord(result)["done"]));
}

describe("ThreadCrew", () => {
  it("calls as many threads as are needed at once, whatever came before", async () => {
    const random = new Random("thread crew", SEED);
    const groups = Array.from({ length: byScale(300, 5000) }, () => random.between(1, THREADS));
    groups[0] = THREADS;
    // Long enough for some to be parked, or not.
    const done = await runGroups(groups, () => random.pick([0, 1, 5]));
    expect(done.reduce((sum, count) => sum + count, 0)).toBe(groups.reduce((a, b) => a + b, 0));
  });

  it("leaves to one thread what comes one by one", async () => {
    const jobs = byScale(300, 3000);
    const done = await runGroups(Array<number>(jobs).fill(1), () => 1);
    // A job may wait for a thread that was kept from running: then another one comes for a while.
    expect(Math.max(...done)).toBeGreaterThan(jobs / 3);
  });
});
