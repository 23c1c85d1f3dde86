/** What a writer that was stopped left behind: clusters reserved or freed, but not accounted for. */

import { CorruptionError, TsimgfsError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { reclaimLeaks, repairRefcounts } from "../check/repair.ts";
import { INCOMPATIBLE } from "../features.ts";
import { type Qcow2Layout, readQcow2Layout } from "../layout.ts";

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
    reclaimLeaks(storage, layout);
    return undefined;
  } catch (error) {
    // As QEMU, what nobody has marked as damaged is written to; what is hit is found then.
    if (!(error instanceof CorruptionError)) throw error;
    return `is damaged, see tsimgfs check (${error.reason})`;
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
