/** What a writer that was stopped left behind: clusters reserved or freed, but not accounted for. */

import { CorruptionError, TsimgfsError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { reclaimLeaks, repairRefcounts } from "../check/repair.ts";
import { INCOMPATIBLE } from "../features.ts";
import { type Qcow2Layout, readQcow2Layout } from "../layout.ts";
import { HeaderWriter } from "./header-writer.ts";
import { RefcountStore } from "./refcount-store.ts";
import { SessionMarks } from "./session-marks.ts";
import { createSharedState, SharedState } from "./shared-state.ts";

/**
 * Repair an image that was not closed orderly.
 *
 * @returns what happened, for the user to know; undefined: there was nothing to do
 * @throws {TsimgfsError} EACCES: it is marked corrupt; or it cannot be repaired
 */
export function repairQcow2BeforeWriting(
  layout: Qcow2Layout,
  storage: WritableStorage,
): string | undefined {
  refuseCorrupt(layout, storage);
  if ((layout.header.incompatible_features & INCOMPATIBLE.dirty) !== 0n) {
    dropPastEnd(layout, storage);
    repairRefcounts(storage, layout);
    return "was not closed cleanly (dirty bit); its refcounts have been repaired";
  }
  // Version 2 has no dirty bit: only a look at all tables tells whether clusters are leaked.
  return layout.header.version < 3 ? reclaimUnmarked(layout, storage) : undefined;
}

/** What was found corrupt is repaired by who asks for it, and not in passing. */
function refuseCorrupt({ header }: Qcow2Layout, storage: WritableStorage): void {
  if ((header.incompatible_features & INCOMPATIBLE.corrupt) === 0n) return;
  const reason = "is marked corrupt: repair it with tsimgfs check -r all, or read it with -r";
  throw new TsimgfsError("EACCES", storage.path, reason);
}

function reclaimUnmarked(layout: Qcow2Layout, storage: WritableStorage): string | undefined {
  try {
    dropPastEnd(layout, storage);
    reclaimLeaks(storage, layout);
    return undefined;
  } catch (error) {
    // As QEMU, what nobody has marked as damaged is written to; what is hit is found then.
    if (!(error instanceof CorruptionError)) throw error;
    return `is damaged, see tsimgfs check (${error.reason})`;
  }
}

/**
 * Refcounts of clusters past the end of the file become 0: a writer raises them and extends the file,
 * and a power cut may have kept the one without the other. A check looks no further than the file.
 */
function dropPastEnd(layout: Qcow2Layout, storage: WritableStorage): void {
  const state = new SharedState(createSharedState(layout.header, layout.virtualSize));
  const headerWriter = new HeaderWriter(storage, layout.header.version);
  const marks = new SessionMarks(state, storage, headerWriter);
  const refcounts = new RefcountStore(layout, storage, state, headerWriter, marks);
  const { entriesPerBlock, table } = refcounts;
  let first = Math.ceil(storage.currentLength() / layout.clusterSize);
  for (let block = Math.floor(first / entriesPerBlock); block < table.entries; block++) {
    const end = (block + 1) * entriesPerBlock;
    if (table.hasBlock(block)) refcounts.change({ first, count: end - first }, () => 0);
    first = end;
  }
}

/**
 * Give clusters back that a change which failed half-way has left behind.
 *
 * @throws {TsimgfsError} it cannot be done: the dirty bit stays, and the next writer tries again
 */
export function reclaimLeftovers(storage: WritableStorage): void {
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: false });
  reclaimLeaks(storage, layout);
}
