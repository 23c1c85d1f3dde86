/**
 * L2 entries of preallocated clusters at impossible offsets. They read as zeros, or as the backing
 * file, and their cluster was never used: without it they can say the same.
 */

import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { L2E_ZERO_LO } from "../table-entry.ts";
import type { Analysis } from "./analysis.ts";
import { CLUSTER, L2EntryRules } from "./l2-table-walk.ts";

/** @returns how many entries were changed */
export function dropUnalignedClusters({ references }: Analysis, storage: WritableStorage): number {
  const { image, l2Tables } = references;
  const rules = new L2EntryRules(image.layout);
  const content = NativeBuffer.allocate(image.layout.clusterSize);
  const { view } = content;
  let changed = 0;
  for (const offset of l2Tables.inOrder()) {
    if (!references.areL2EntriesAlone(offset)) continue;
    storage.readAt(content, 0, content.length, offset);
    for (let at = 0; at < content.length; at += rules.entryBytes) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if (rules.kindOf(hi, lo) !== CLUSTER.allocated || !rules.isUnaligned(lo)) continue;
      if (rules.hasData(lo, rules.extended ? view.getUint32(at + 12) : 0)) continue;
      view.setUint32(at, 0);
      // With sub-clusters, the bitmap says which read as zeros.
      view.setUint32(at + 4, rules.extended ? 0 : L2E_ZERO_LO);
      storage.writeAt(content, at, rules.entryBytes, offset + at);
      changed++;
    }
  }
  return changed;
}
