/**
 * From one version of the format to the other: what the version does not have goes first, while the image is of
 * the one that it was; then one write of the header's first sector makes the image one of the other version.
 * Source: qcow2 specification, "Header", "Snapshots".
 */

import { StorageError, UnsupportedError, UsageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { canSwitch, switchHeader } from "../../header-switch.ts";
import type { Analysis } from "../check/analysis.ts";
import { FreeClusters } from "../check/free-clusters.ts";
import { needsRebuild, rebuildRefcounts } from "../check/rebuild-refcounts.ts";
import { reclaimLeaks } from "../check/repair.ts";
import { NewSnapshotTable } from "../check/rewrite-snapshots.ts";
import { updateRefcounts } from "../check/update-refcounts.ts";
import { INCOMPATIBLE } from "../features.ts";
import { readFirstCluster } from "../first-cluster.ts";
import { CRYPT_METHOD } from "../header.ts";
import { HeaderArea } from "../header-area.ts";
import { readQcow2Layout } from "../layout.ts";
import { readSnapshotTable } from "../snapshot-table.ts";
import { HeaderWriter } from "../writer/header-writer.ts";
import { analyseIntact } from "./intact-analysis.ts";
import { tablesWithZeros, unallocateZeroClusters } from "./zero-clusters.ts";

const LAYOUT_OPTIONS = { tableCacheMax: 0, keepsL1: false } as const;

/**
 * Make an image of version 2 one of version 3, durably.
 *
 * @throws {StorageError} ENOSPC: the first cluster has no room for the longer header; it stays as it is
 * @throws {TsimgfsError}
 */
export function upgradeToVersion3(storage: WritableStorage): void {
  requireRoom(storage, 3);
  const { header } = readFirstCluster(storage);
  if (header.nb_snapshots > 0) completeSnapshotTable(analyseIntact(storage), storage);
  switchVersion(storage, 3);
}

/** Version 3 wants snapshots to say more; version 2 lets them. */
function completeSnapshotTable(analysis: Analysis, storage: WritableStorage): void {
  const { image } = analysis;
  const { layout } = image;
  const header = { ...layout.header, version: 3 };
  const free = new FreeClusters(analysis, storage);
  const asVersion3 = { ...analysis, image: { ...image, layout: { ...layout, header } } };
  const table = new NewSnapshotTable(asVersion3, free);
  if (needsRebuild(analysis)) rebuildRefcounts(analysis, storage, free);
  else updateRefcounts(analysis, storage, "raise");
  storage.sync();
  table.write(storage);
  storage.sync();
  table.enter(storage);
  storage.sync();
  reclaimLeaks(storage, readQcow2Layout(storage, LAYOUT_OPTIONS));
}

/**
 * Refuse to make an image one of version 2 that uses what only version 3 has. Nothing is changed.
 *
 * @throws {UsageError | UnsupportedError | CorruptionError | StorageError}
 */
export function checkDowngrade(storage: WritableStorage): void {
  const { path } = storage;
  const layout = readQcow2Layout(storage, LAYOUT_OPTIONS);
  const { header } = layout;
  if (layout.dataFile !== undefined) {
    throw new UsageError(path, "cannot downgrade an image with a data file");
  }
  if ((header.incompatible_features & ~INCOMPATIBLE.dirty) !== 0n) {
    throw new UsageError(path, "cannot downgrade an image with incompatible features set");
  }
  for (const { virtualSize, vmStateSize } of readSnapshotTable(layout, storage)) {
    if (virtualSize === layout.virtualSize && vmStateSize === 0) continue;
    throw new UsageError(path, "internal snapshots prevent the downgrade of the image");
  }
  requireRoom(storage, 2);
  const analysis = analyseIntact(storage);
  if (layout.backingFile === undefined || header.crypt_method === CRYPT_METHOD.none) return;
  if (tablesWithZeros(analysis, storage, "snapshots").length === 0) return;
  const reason =
    "is encrypted, and its snapshots have zero clusters over a backing file, which compat=0.10 has not: delete them first (tsimgfs snapshot -d)";
  throw new UnsupportedError(path, reason);
}

/**
 * Make an image of version 3 one of version 2, durably. With a backing file, no zero clusters are left; its
 * refcounts have 16 bits.
 *
 * @throws {TsimgfsError} it stays one of version 3, with the same contents
 */
export function downgradeToVersion2(storage: WritableStorage): void {
  checkDowngrade(storage);
  const analysis = analyseIntact(storage);
  const { backingFile } = readQcow2Layout(storage, LAYOUT_OPTIONS);
  if (backingFile === undefined) {
    // Whoever finds places leaked, should it not come to its end, knows by this bit.
    new HeaderWriter(storage, 3).setIncompatible("dirty", true);
    storage.sync();
    unallocateZeroClusters(analysis, storage);
    storage.sync();
  } else if (tablesWithZeros(analysis, storage, "any").length > 0) {
    throw new UnsupportedError(storage.path, "has zero clusters that could not be expanded");
  }
  switchVersion(storage, 2);
  reclaimLeaks(storage, readQcow2Layout(storage, LAYOUT_OPTIONS));
}

function requireRoom(storage: WritableStorage, version: 2 | 3): void {
  const { header, bytes } = readFirstCluster(storage);
  reachable(storage, new HeaderArea(header, bytes), version);
}

function switchVersion(storage: WritableStorage, version: 2 | 3): void {
  const { header, bytes } = readFirstCluster(storage);
  const area = new HeaderArea(header, bytes);
  switchHeader(storage, area.bytes, reachable(storage, area, version).bytes);
}

/** The first cluster in another version, if it takes the first sector alone to switch to it. */
function reachable(storage: WritableStorage, area: HeaderArea, version: 2 | 3): HeaderArea {
  for (const place of [0, Math.ceil(area.end() / 8) * 8]) {
    const wanted = area.withVersion(version, place);
    if (wanted !== undefined && canSwitch(area.bytes, wanted.bytes, area.inUse())) return wanted;
  }
  const reason = `its first cluster of ${area.bytes.length} bytes has no room for a header of version ${version} beside what is there`;
  throw new StorageError("ENOSPC", storage.path, reason);
}
