/** Zero clusters, which version 2 does not have: where no backing file shows through, nothing says zeros too. */

import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { Analysis } from "../check/analysis.ts";
import { L2E_COMPRESSED_HI, L2E_ZERO_LO } from "../table-entry.ts";

const ENTRY_SIZE = 8;

/** Whether a table has zero clusters that a snapshot refers to (`snapshots`), or any tree (`any`). */
export function hasZeroClusters(
  analysis: Analysis,
  storage: WritableStorage,
  where: "snapshots" | "any",
): boolean {
  const { image, l2Tables } = analysis.references;
  const table = NativeBuffer.allocate(image.layout.clusterSize);
  return l2Tables.inOrder().some((offset) => {
    const isMeant = where === "any" || l2Tables.totalAt(offset) > l2Tables.activeAt(offset);
    if (!isMeant) return false;
    storage.readAt(table, 0, table.length, offset);
    for (let at = 0; at < table.length; at += ENTRY_SIZE) if (isZero(table.view, at)) return true;
    return false;
  });
}

/**
 * Let entries of all trees say nothing instead of zeros: for images without a backing file. Their places, if they
 * have any, are leaked then.
 */
export function unallocateZeroClusters(analysis: Analysis, storage: WritableStorage): void {
  const { image, l2Tables } = analysis.references;
  const table = NativeBuffer.allocate(image.layout.clusterSize);
  const { view } = table;
  for (const offset of l2Tables.inOrder()) {
    storage.readAt(table, 0, table.length, offset);
    let isChanged = false;
    for (let at = 0; at < table.length; at += ENTRY_SIZE) {
      if (!isZero(view, at)) continue;
      view.setUint32(at, 0);
      view.setUint32(at + 4, 0);
      isChanged = true;
    }
    if (isChanged) storage.writeAt(table, 0, table.length, offset);
  }
}

/** Of standard entries: there are no others where this is asked. */
function isZero(view: DataView, at: number): boolean {
  if ((view.getUint32(at + 4) & L2E_ZERO_LO) === 0) return false;
  return (view.getUint32(at) & L2E_COMPRESSED_HI) === 0;
}
