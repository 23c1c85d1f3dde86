/** A thread that looks up slices of a file whose every word is the number of its slice. */

import { parentPort, workerData } from "node:worker_threads";
import { LocalFile, type SharedFile } from "../../../src/storage/local-file.ts";
import { type SharedTableCache, TableCache } from "../../../src/threads/table-cache.ts";
import { Random } from "../../support/random.ts";

export interface TableCacheWorkerData {
  readonly shared: SharedTableCache;
  readonly file: SharedFile;
  readonly thread: number;
  readonly seed: number;
  readonly lookups: number;
}

export interface TableCacheWorkerResult {
  /** Words that were not of the slice although `isValid` said so. */
  readonly wrong: number;
  /** Slices that were replaced while they were read. */
  readonly replaced: number;
}

const { shared, file, thread, seed, lookups }: TableCacheWorkerData = workerData;
const random = new Random(`table cache thread ${thread}`, seed);
const cache = new TableCache(shared, new LocalFile(file));
const { sliceSize, words } = cache;
const slices = Math.ceil(file.length / sliceSize) + 4;
let wrong = 0;
let replaced = 0;
for (let lookup = 0; lookup < lookups; lookup++) {
  const slice = random.below(slices);
  // Now the whole slice, now only its end, which is what a replacement overwrites last.
  const first = lookup % 2 === 0 ? 0 : sliceSize / 4 - 1;
  let mismatches: number;
  do {
    cache.lookup(slice * sliceSize);
    mismatches = 0;
    for (let index = first; index < sliceSize / 4; index++) {
      const offset = slice * sliceSize + index * 4;
      const expected = offset < file.length ? slice : 0;
      if (Atomics.load(words, cache.base + index) !== expected) mismatches++;
    }
    if (!cache.isValid()) replaced++;
  } while (!cache.isValid());
  wrong += mismatches;
}
const result: TableCacheWorkerResult = { wrong, replaced };
parentPort?.postMessage(result);
