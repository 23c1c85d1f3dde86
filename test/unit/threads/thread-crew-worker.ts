/** A thread of a crew that takes jobs from a queue, in which it waits as in read(2) of /dev/fuse. */

import { parentPort, workerData } from "node:worker_threads";
import { ThreadCrew } from "../../../src/threads/thread-crew.ts";
import { QUEUE } from "./thread-crew-queue.ts";

export interface ThreadCrewWorkerData {
  readonly crew: SharedArrayBuffer;
  readonly queue: SharedArrayBuffer;
  /** Jobs in all. */
  readonly jobs: number;
  /** A job ends only when all jobs of its group are under way: so many threads are needed at once. */
  readonly groupOf: readonly number[];
  readonly groupSizes: readonly number[];
}

export interface ThreadCrewWorkerResult {
  /** Jobs that this thread did. */
  readonly done: number;
}

const data: ThreadCrewWorkerData = workerData;
const words = new Int32Array(data.queue);
const crew = new ThreadCrew(data.crew, hasJob);
let done = 0;

/** Whether a job waits, or there are no more. */
function hasJob(): boolean {
  const taken = Atomics.load(words, QUEUE.taken);
  return taken < Atomics.load(words, QUEUE.posted) || taken >= data.jobs;
}

/** The number of the next job; at the end, `data.jobs` or more. */
function takeJob(): number {
  for (;;) {
    const taken = Atomics.load(words, QUEUE.taken);
    const posted = Atomics.load(words, QUEUE.posted);
    if (taken >= data.jobs) return taken;
    if (taken === posted) Atomics.wait(words, QUEUE.posted, posted);
    else if (Atomics.compareExchange(words, QUEUE.taken, taken, taken + 1) === taken) return taken;
  }
}

crew.join();
for (;;) {
  crew.rest();
  const job = takeJob();
  crew.leave();
  if (job >= data.jobs) break;
  const group = data.groupOf[job] ?? 0;
  const word = QUEUE.started + group;
  const size = data.groupSizes[group] ?? 0;
  let started = Atomics.add(words, word, 1) + 1;
  Atomics.notify(words, word);
  while (started < size) {
    Atomics.wait(words, word, started);
    started = Atomics.load(words, word);
  }
  done++;
  crew.join();
}
crew.end();
const result: ThreadCrewWorkerResult = { done };
parentPort?.postMessage(result);
