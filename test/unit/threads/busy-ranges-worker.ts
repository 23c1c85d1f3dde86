/** A thread that claims ranges of an array, and changes them without a lock as long as they are its own. */

import { parentPort, workerData } from "node:worker_threads";
import { AccessLock } from "../../../src/threads/access-lock.ts";
import { BusyRanges } from "../../../src/threads/busy-ranges.ts";
import { Random } from "../../support/random.ts";

export interface BusyRangesWorkerData {
  readonly lock: SharedArrayBuffer;
  readonly busy: SharedArrayBuffer;
  /** One word for each byte of the disk: how often it was changed. */
  readonly memory: SharedArrayBuffer;
  readonly slot: number;
  readonly seed: number;
  readonly rounds: number;
}

export interface BusyRangesWorkerResult {
  /** By byte: how often this thread changed it. */
  readonly changes: readonly number[];
  /** How often it had to wait. */
  readonly waits: number;
}

const data: BusyRangesWorkerData = workerData;
const lock = new AccessLock(data.lock, data.slot);
const busy = new BusyRanges(data.busy, data.slot);
const words = new Int32Array(data.memory);
const random = new Random(`busy ranges ${data.slot}`, data.seed);
const changes: number[] = Array(words.length).fill(0);
let waits = 0;

/** Claims a range as a writer does: it looks under the lock, and waits without it. */
function claim(start: number, end: number): void {
  for (;;) {
    lock.lockExclusive();
    const slot = busy.findOverlap(start, end);
    if (slot < 0) {
      busy.claim(start, end);
      lock.unlockExclusive();
      return;
    }
    const releases = busy.releasesOf(slot);
    lock.unlockExclusive();
    busy.waitForRelease(slot, releases);
    waits++;
  }
}

for (let round = 0; round < data.rounds; round++) {
  const start = random.below(words.length);
  const end = random.between(start + 1, words.length);
  claim(start, end);
  const seen = words.slice(start, end);
  for (let at = start; at < end; at++) {
    words[at] = (seen[at - start] ?? 0) + 1;
    changes[at] = (changes[at] ?? 0) + 1;
  }
  lock.lockExclusive();
  busy.release();
  lock.unlockExclusive();
}
const result: BusyRangesWorkerResult = { changes, waits };
parentPort?.postMessage(result);
