/** Zero clusters, which version 2 does not have: where no backing file shows through, nothing says zeros too. */

import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { Analysis } from "../check/analysis.ts";
import { L2E_COMPRESSED_HI, L2E_ZERO_LO } from "../table-entry.ts";

const ENTRY_SIZE = 8;

/** The L2 tables that have zero clusters: those that a snapshot refers to (`snapshots`), or of all trees (`any`). */
export function tablesWithZeros(
  analysis: Analysis,
  storage: WritableStorage,
  where: "snapshots" | "any",
): readonly number[] {
  const { image, l2Tables } = analysis.references;
  const table = NativeBuffer.allocate(image.layout.clusterSize);
  return Array.from(l2Tables.inOrder()).filter((offset) => {
    const isMeant = where === "any" || l2Tables.totalAt(offset) > l2Tables.activeAt(offset);
    if (!isMeant) return false;
    storage.readAt(table, 0, table.length, offset);
    return countZeroEntries(table.view) > 0;
  });
}

/**
 * Let entries of all trees say nothing instead of zeros: for images without a backing file. Their places, if they
 * have any, are leaked then.
 */
export function unallocateZeroClusters(analysis: Analysis, storage: WritableStorage): void {
  const { image } = analysis.references;
  const table = NativeBuffer.allocate(image.layout.clusterSize);
  const { view } = table;
  for (const offset of tablesWithZeros(analysis, storage, "any")) {
    storage.readAt(table, 0, table.length, offset);
    forEachZeroEntry(view, (at) => {
      view.setUint32(at, 0);
      view.setUint32(at + 4, 0);
    });
    storage.writeAt(table, 0, table.length, offset);
  }
}

/** How many entries of a table are zero clusters. */
export function countZeroEntries(table: DataView): number {
  let count = 0;
  forEachZeroEntry(table, () => count++);
  return count;
}

/** Visit the entries of a table that are zero clusters, in their order; they may be changed. */
export function forEachZeroEntry(table: DataView, visit: (at: number) => void): void {
  for (let at = 0; at < table.byteLength; at += ENTRY_SIZE) if (isZero(table, at)) visit(at);
}

/** Of standard entries: there are no others where this is asked. */
function isZero(view: DataView, at: number): boolean {
  if ((view.getUint32(at + 4) & L2E_ZERO_LO) === 0) return false;
  return (view.getUint32(at) & L2E_COMPRESSED_HI) === 0;
}
