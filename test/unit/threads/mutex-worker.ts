/** A thread that adds to plain words of shared memory, protected by nothing but the mutex. */

import { parentPort, workerData } from "node:worker_threads";
import { Mutex } from "../../../src/threads/mutex.ts";

/** What the thread is given. `words[0]` is the mutex, all others hold the same number. */
export interface MutexWorkerData {
  readonly memory: SharedArrayBuffer;
  readonly rounds: number;
  /** How it is locked. */
  readonly lock: "lock" | "lockActively";
}

const { memory, rounds, lock }: MutexWorkerData = workerData;
const words = new Int32Array(memory);
const mutex = new Mutex(words, 0);
let torn = 0;
for (let round = 0; round < rounds; round++) {
  mutex[lock]();
  const first = words[1] ?? 0;
  for (let index = 1; index < words.length; index++) {
    if (words[index] !== first) torn++;
    words[index] = first + 1;
  }
  mutex.unlock();
}
parentPort?.postMessage(torn);
