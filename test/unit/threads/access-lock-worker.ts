/** A thread that shares and excludes: it changes plain words while it excludes, and compares them while it shares. */

import { parentPort, workerData } from "node:worker_threads";
import { AccessLock } from "../../../src/threads/access-lock.ts";
import { Random } from "../../support/random.ts";

export interface AccessLockWorkerData {
  readonly lock: SharedArrayBuffer;
  /** Word 0: threads that have ended; the words from 2 on hold the same number. */
  readonly memory: SharedArrayBuffer;
  readonly slot: number;
  readonly seed: number;
  /** In percent: how often it excludes. */
  readonly excludes: number;
  /** How often it takes the lock; without it, until `others` threads have ended. */
  readonly rounds?: number;
  readonly others?: number;
}

export interface AccessLockWorkerResult {
  readonly excluded: number;
  readonly shared: number;
  /** Words that were not as they must be. */
  readonly torn: number;
}

const data: AccessLockWorkerData = workerData;
const lock = new AccessLock(data.lock, data.slot);
const words = new Int32Array(data.memory);
const random = new Random(`access lock ${data.slot}`, data.seed);
let excluded = 0;
let shared = 0;
let torn = 0;

function exclude(): void {
  lock.lockExclusive();
  const first = words[2] ?? 0;
  for (let index = 2; index < words.length; index++) {
    if (words[index] !== first) torn++;
    words[index] = first + 1;
  }
  lock.unlockExclusive();
  excluded++;
}

function share(): void {
  lock.lockShared();
  const first = words[2] ?? 0;
  for (let index = 2; index < words.length; index++) {
    if (words[index] !== first) torn++;
  }
  lock.unlockShared();
  shared++;
}

const isAtEnd = (): boolean =>
  data.rounds === undefined
    ? Atomics.load(words, 0) >= (data.others ?? 0)
    : excluded + shared >= data.rounds;
while (!isAtEnd()) {
  if (random.below(100) < data.excludes) exclude();
  else share();
}
if (data.rounds !== undefined) Atomics.add(words, 0, 1);
const result: AccessLockWorkerResult = { excluded, shared, torn };
parentPort?.postMessage(result);
