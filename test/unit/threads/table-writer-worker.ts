/**
 * A thread that reads tables under the shared lock, or changes them under the exclusive one, in the file
 * and in the cache. Every word of a slice is how often the slice was changed.
 */

import { parentPort, workerData } from "node:worker_threads";
import { LocalFile, type SharedFile } from "../../../src/storage/local-file.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { AccessLock } from "../../../src/threads/access-lock.ts";
import { type SharedTableCache, TableCache } from "../../../src/threads/table-cache.ts";
import { Random } from "../../support/random.ts";

export interface TableWriterWorkerData {
  readonly shared: SharedTableCache;
  readonly lock: SharedArrayBuffer;
  /** One word for each slice: how often it was changed. */
  readonly changes: SharedArrayBuffer;
  readonly file: SharedFile;
  readonly slot: number;
  readonly seed: number;
  readonly rounds: number;
  readonly writes: boolean;
}

const data: TableWriterWorkerData = workerData;
const random = new Random(`table writer ${data.slot}`, data.seed);
const storage = new LocalFile(data.file);
const cache = new TableCache(data.shared, storage);
const lock = new AccessLock(data.lock, data.slot);
const changes = new Int32Array(data.changes);
const { sliceSize, words } = cache;
const source = NativeBuffer.allocate(sliceSize);
const sourceWords = new Int32Array(source.bytes.buffer, source.bytes.byteOffset, sliceSize / 4);
let wrong = 0;

function change(slice: number): void {
  lock.lockExclusive();
  changes[slice] = (changes[slice] ?? 0) + 1;
  sourceWords.fill(changes[slice] ?? 0);
  const offset = slice * sliceSize;
  storage.writeAt(source, 0, sliceSize, offset);
  if (random.below(4) === 0) cache.invalidate(offset, sliceSize);
  else cache.update(source, 0, sliceSize, offset);
  lock.unlockExclusive();
}

function read(slice: number): void {
  lock.lockShared();
  let mismatches: number;
  do {
    cache.lookup(slice * sliceSize);
    mismatches = 0;
    for (let index = 0; index < sliceSize / 4; index++) {
      if (Atomics.load(words, cache.base + index) !== changes[slice]) mismatches++;
    }
  } while (!cache.isValid());
  wrong += mismatches;
  lock.unlockShared();
}

for (let round = 0; round < data.rounds; round++) {
  const slice = random.below(changes.length);
  if (data.writes && random.below(3) === 0) change(slice);
  else read(slice);
}
parentPort?.postMessage({ wrong });
