/**
 * Refcounts of another width: all structures are written anew beside those in force, made durable, and take
 * effect with one write of the header. Source: qcow2 specification, "Host cluster management".
 */

import { hex, UsageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { Analysis } from "../check/analysis.ts";
import { FreeClusters } from "../check/free-clusters.ts";
import { rebuildRefcounts } from "../check/rebuild-refcounts.ts";
import { HeaderWriter } from "../writer/header-writer.ts";
import { analyseIntact } from "./intact-analysis.ts";

/**
 * Refuse a width that a refcount does not fit into. Nothing is changed.
 *
 * @throws {UsageError | CorruptionError}
 */
export function checkRefcountWidth(storage: WritableStorage, refcountBits: number): void {
  const analysis = analyseIntact(storage);
  if (refcountBits < analysis.image.layout.refcountBits) refuseOverflow(analysis, refcountBits);
}

/**
 * Give an image of version 3 refcounts of a width, durably: at every instant it has the old ones or the new ones.
 *
 * @param refcountBits a power of two, 1 to 64
 * @throws {UsageError} a refcount does not fit; nothing is changed
 * @throws {UnsupportedError} the refcount table would be too large
 * @throws {CorruptionError | StorageError}
 */
export function changeRefcountWidth(storage: WritableStorage, refcountBits: number): void {
  const analysis = analyseIntact(storage);
  if (refcountBits === analysis.image.layout.refcountBits) return;
  refuseOverflow(analysis, refcountBits);
  new HeaderWriter(storage, analysis.image.layout.header.version).renew();
  storage.sync();
  rebuildRefcounts(analysis, storage, new FreeClusters(analysis, storage), refcountBits);
}

function refuseOverflow({ image, references }: Analysis, refcountBits: number): void {
  const { counts } = references;
  const max = 2 ** refcountBits - 1;
  for (
    let cluster = counts.nextReferenced(0);
    cluster < Number.POSITIVE_INFINITY;
    cluster = counts.nextReferenced(cluster + 1)
  ) {
    const refcount = counts.get(cluster);
    if (refcount <= max) continue;
    const offset = cluster * image.layout.clusterSize;
    const reason = `refcount_bits=${refcountBits} is too narrow: the cluster at ${hex(offset)} has a refcount of ${refcount}`;
    throw new UsageError(image.storage.path, reason, { offset });
  }
}
