/** A thread that reads all of a disk at random, as an I/O thread does, and writes to its own cells. */

import { parentPort, workerData } from "node:worker_threads";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { OpenChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { Random } from "../support/random.ts";
import { CELL_SIZE, Cells, isZeroValue, putValue, wrongWord } from "./cell-values.ts";

export interface CopyThreadData {
  readonly chain: OpenChain;
  readonly cells: SharedArrayBuffer;
  readonly virtualSize: number;
  readonly slot: number;
  /** Threads that have cells. */
  readonly threads: number;
  readonly seed: number;
  readonly label: string;
  readonly steps: number;
}

const MAX_CELLS = 96;

const data: CopyThreadData = workerData;
const random = new Random(data.label, data.seed);
const disk = attachDisk(
  data.chain,
  { clusterCache: new ClusterCache() },
  { slot: data.slot, requestMaintenance: () => parentPort?.postMessage("maintain") },
);
const cells = new Cells(data.cells);
const count = data.virtualSize / CELL_SIZE;
const buffer = NativeBuffer.allocate(MAX_CELLS * CELL_SIZE);
const bytes = Buffer.from(buffer.bytes.buffer, buffer.bytes.byteOffset, buffer.length);

function readCells(first: number, length: number): void {
  const oldest = Array.from({ length }, (_, index) => cells.ended(first + index));
  disk.readFirst(first * CELL_SIZE, length * CELL_SIZE, buffer, 0);
  for (let index = 0; index < length; index++) {
    const cell = first + index;
    const range = { cell, oldest: oldest[index] ?? 0, newest: cells.begun(cell) };
    const wrong = wrongWord(bytes, index * CELL_SIZE, range);
    if (wrong !== undefined) throw new Error(`thread ${data.slot}: ${wrong}`);
  }
  disk.storeFetched();
}

function writeCell(): void {
  const cell = data.slot + random.below(Math.floor(count / data.threads)) * data.threads;
  const value = cells.begin(cell);
  if (isZeroValue(cell, value) && random.below(2) === 0) {
    disk.writeZeroes(cell * CELL_SIZE, CELL_SIZE, { unmap: random.below(2) === 0 });
  } else {
    putValue(bytes, 0, cell, value);
    disk.write(cell * CELL_SIZE, CELL_SIZE, buffer, 0);
  }
  cells.end(cell, value);
}

for (let step = 0; step < data.steps; step++) {
  const what = random.below(100);
  if (what < 55) {
    const first = random.below(count);
    readCells(first, random.between(1, Math.min(count - first, MAX_CELLS)));
  } else if (what < 97) writeCell();
  else disk.flush();
}
