/** Changing refcounts in the blocks that there are. */

import type { HostRun, WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { readRefcount, writeRefcount } from "../refcount-entry.ts";
import type { Analysis } from "./analysis.ts";
import { refcountMax } from "./check-layout.ts";
import { BLOCK_FAULT } from "./refcount-table.ts";

/** The unit that a disk writes whole, bytes. */
const SECTOR_SIZE = 512;
/** Blocks are changed in pieces of this many bytes. */
const PIECE = 65536;

/** raise: only where a refcount is lower than the references. lower: only where it is higher. */
export type RefcountChange = "raise" | "lower";

/**
 * Make refcounts say what the references are, one way. Blocks that are damaged stay as they are.
 *
 * @returns how many were changed
 */
export function updateRefcounts(
  analysis: Analysis,
  storage: WritableStorage,
  change: RefcountChange,
): number {
  const { image, table, references } = analysis;
  const { clusterSize, refcountBits } = image.layout;
  const max = refcountMax(image.layout);
  const pieceSize = Math.min(PIECE, clusterSize);
  const pieceEntries = (pieceSize * 8) / refcountBits;
  const piece = NativeBuffer.allocate(pieceSize);
  const sectorEntries = (SECTOR_SIZE * 8) / refcountBits;
  const { counts } = references;
  // What is past the end of the file is free: nothing refers to it.
  const clusters = change === "raise" ? counts.clusters : table.coveredClusters();
  let changed = 0;
  for (let start = 0; start < clusters; start += pieceEntries) {
    const block = Math.floor(start / table.blockEntries);
    const blockOffset = table.blockOffset(block);
    if (blockOffset === 0 || table.faults[block] !== BLOCK_FAULT.none) continue;
    // Nothing to raise, or no need to look.
    const end = start + pieceEntries;
    if (change === "raise" && counts.nextReferenced(start, end) >= end) continue;
    const offset = blockOffset + ((start % table.blockEntries) * refcountBits) / 8;
    storage.readAt(piece, 0, pieceSize, offset);
    const count = Math.min(pieceEntries, clusters - start);
    let firstSector = Number.POSITIVE_INFINITY;
    let lastSector = -1;
    for (let index = 0; index < count; index++) {
      const refcount = readRefcount(piece.view, index, refcountBits);
      const expected = Math.min(counts.get(start + index), max);
      if (change === "raise" ? refcount >= expected : refcount <= expected) continue;
      writeRefcount(piece.view, index, refcountBits, expected);
      changed++;
      lastSector = Math.floor(index / sectorEntries);
      firstSector = Math.min(firstSector, lastSector);
    }
    if (lastSector >= 0) {
      const from = firstSector * SECTOR_SIZE;
      storage.writeAt(piece, from, (lastSector + 1) * SECTOR_SIZE - from, offset + from);
    }
  }
  table.invalidate();
  return changed;
}

/** Give the space of leaked clusters that nothing refers to back to the host, where it has any. */
export function punchLeaks({ image, table, references }: Analysis, storage: WritableStorage): void {
  const { clusterSize } = image.layout;
  const { counts } = references;
  let runStart = 0;
  let runEnd = 0;
  const flush = (): void => punchData(storage, runStart * clusterSize, runEnd * clusterSize);
  table.forEachUsed(counts.clusters, (cluster) => {
    if (counts.get(cluster) !== 0) return;
    if (cluster !== runEnd) {
      flush();
      runStart = cluster;
    }
    runEnd = cluster + 1;
  });
  flush();
}

/** Punch those parts of a range that hold data: where punching is writing zeros, holes stay holes. */
function punchData(storage: WritableStorage, start: number, end: number): void {
  const run: HostRun = { isData: false, length: 0 };
  for (let at = start; at < end; at += run.length) {
    storage.hostRun(at, run);
    if (run.isData) storage.zeroAt(at, Math.min(run.length, end - at), "release");
  }
}
