/**
 * Zero clusters of snapshots over a backing file, for version 2, which has none: their entries come to refer to
 * clusters that read as zeros, places in the file without data. The tables are changed in place: each entry says
 * the same before and after, to all trees that share its table.
 */

import { TWO_TO_32 } from "../../../binary/words.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { Analysis } from "../check/analysis.ts";
import { FreeClusters } from "../check/free-clusters.ts";
import { needsRebuild, rebuildRefcounts } from "../check/rebuild-refcounts.ts";
import { updateRefcounts } from "../check/update-refcounts.ts";
import { HeaderWriter } from "../writer/header-writer.ts";
import { reclaimLeftovers } from "../writer/leftovers.ts";
import { analyseIntact } from "./intact-analysis.ts";
import { countZeroEntries, forEachZeroEntry, tablesWithZeros } from "./zero-clusters.ts";

/** How far it is, bytes of disks that the tables map. */
export interface ExpansionProgress {
  readonly done: number;
  readonly total: number;
}

/**
 * Expand the zero clusters of snapshots, in steps; after the last one, and when the caller stops, it is durable, and
 * nothing is leaked. When it fails, the dirty bit stays, and the next writer gives back what is leaked.
 *
 * @param storage an image of version 3, not encrypted, without extended L2 entries
 * @throws {TsimgfsError} the image is a valid one, with the same contents
 */
export function* expandSnapshotZeros(
  storage: WritableStorage,
): Generator<ExpansionProgress, void, void> {
  const analysis = analyseIntact(storage);
  const { clusterSize, l2Entries } = analysis.image.layout;
  const tables = tablesWithZeros(analysis, storage, "snapshots");
  if (tables.length === 0) return;
  new HeaderWriter(storage, 3).setIncompatible("dirty", true);
  storage.sync();
  let isIntact = false;
  try {
    let next = reserve(analysis, storage, tables);
    const content = NativeBuffer.allocate(clusterSize);
    const { view } = content;
    for (const [index, offset] of tables.entries()) {
      isIntact = true;
      yield {
        done: index * clusterSize * l2Entries,
        total: tables.length * clusterSize * l2Entries,
      };
      isIntact = false;
      storage.readAt(content, 0, clusterSize, offset);
      forEachZeroEntry(view, (at) => {
        const place = next++ * clusterSize;
        view.setUint32(at, Math.floor(place / TWO_TO_32));
        view.setUint32(at + 4, place % TWO_TO_32);
      });
      storage.writeAt(content, 0, clusterSize, offset);
    }
    isIntact = true;
  } finally {
    if (isIntact) {
      storage.sync();
      reclaimLeftovers(storage);
    }
  }
}

/**
 * Find and count places for all zero clusters of some tables, durably: they read as zeros, and the file is long enough.
 *
 * @returns the first of their clusters; the others follow
 */
function reserve(analysis: Analysis, storage: WritableStorage, tables: readonly number[]): number {
  const { references, image } = analysis;
  const { clusterSize } = image.layout;
  const content = NativeBuffer.allocate(clusterSize);
  const zeros = tables.map((offset) => {
    storage.readAt(content, 0, clusterSize, offset);
    return countZeroEntries(content.view);
  });
  const count = zeros.reduce((sum, more) => sum + more, 0);
  const free = new FreeClusters(analysis, storage);
  const first = free.take(count);
  let next = first;
  for (const [index, offset] of tables.entries()) {
    const shared = references.l2Tables.totalAt(offset) - 1;
    const end = next + (zeros[index] ?? 0);
    for (; next < end; next++) if (shared > 0) references.counts.add(next, shared);
  }
  makeZero(storage, first * clusterSize, (first + count) * clusterSize);
  if (needsRebuild(analysis)) rebuildRefcounts(analysis, storage, free);
  else updateRefcounts(analysis, storage, "raise");
  storage.sync();
  return first;
}

/** Let a range of the file, which nothing refers to, read as zeros, and be in the file. */
function makeZero(storage: WritableStorage, start: number, end: number): void {
  const inFile = Math.min(end, storage.currentLength());
  if (inFile > start) storage.zeroAt(start, inFile - start, "release");
  if (inFile < end) storage.setLength(end);
}
