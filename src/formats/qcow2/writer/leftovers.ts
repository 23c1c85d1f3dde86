/** What a writer that was stopped left behind: clusters reserved or freed, but not accounted for. */

import type { WritableStorage } from "../../../storage/storage.ts";
import { reclaimLeaks, repairRefcounts } from "../check/repair.ts";
import { INCOMPATIBLE } from "../features.ts";
import { type Qcow2Layout, readQcow2Layout } from "../layout.ts";

/**
 * Repair an image that was not closed orderly.
 *
 * @returns what happened, for the user to know; undefined: there was nothing to do
 * @throws {TsimgfsError} it cannot be repaired
 */
export function repairQcow2BeforeWriting(
  layout: Qcow2Layout,
  storage: WritableStorage,
): string | undefined {
  if ((layout.header.incompatible_features & INCOMPATIBLE.dirty) !== 0n) {
    repairRefcounts(storage, layout);
    return "was not closed cleanly (dirty bit); its refcounts have been repaired";
  }
  if (layout.header.version >= 3 || !endsInHole(layout, storage)) return undefined;
  const { leaks } = reclaimLeaks(storage, layout);
  return leaks === 0 ? undefined : `${leaks} leaked clusters could not be given back`;
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

/**
 * Version 2 has no dirty bit. But what is reserved is a hole, and at the end of the file unless there
 * was space in it: a cluster or more of it tells that a writer may have been stopped.
 */
function endsInHole(layout: Qcow2Layout, storage: WritableStorage): boolean {
  const lastCluster = storage.length - layout.clusterSize;
  if (lastCluster < 0) return false;
  const run = { isData: true, length: 0 };
  storage.hostRun(lastCluster, run);
  return !run.isData && run.length >= layout.clusterSize;
}
