/** Opening a qcow2 image for writing: what threads share, and the writer of each thread. */

import { CorruptionError, hex } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import { createMetadataSet, type MetadataMap } from "../../metadata-map.ts";
import type { Qcow2Layout } from "../layout.ts";
import type { Qcow2Image } from "../qcow2-image.ts";
import {
  createSharedSnapshotTable,
  SharedSnapshotTable,
} from "../snapshots/shared-snapshot-table.ts";
import { COPIED_HI, entryHostOffset } from "../table-entry.ts";
import { ClusterAllocator } from "./cluster-allocator.ts";
import { loadTrackedBitmaps, type SharedBitmap } from "./dirty-bitmaps.ts";
import { HeaderWriter } from "./header-writer.ts";
import { metadataRanges, qcow2MetadataMap } from "./metadata-ranges.ts";
import { Qcow2Writer } from "./qcow2-writer.ts";
import { RefcountBlockTable } from "./refcount-block-table.ts";
import { createSharedState, SharedState } from "./shared-state.ts";

/** L1 entries are read in pieces of this many bytes. */
const L1_PIECE = 65536;

/** What the writers of all threads share: plain data for structured clone. */
export interface Qcow2Writing {
  readonly format: "qcow2";
  readonly state: SharedArrayBuffer;
  readonly metadata: SharedArrayBuffer;
  /** The persistent bitmaps that are kept up. */
  readonly bitmaps: readonly SharedBitmap[];
  /** Of `createSharedSnapshotTable`. */
  readonly snapshots: SharedArrayBuffer;
}

/** What an image is written with. */
export interface WriterOptions {
  readonly lock: AccessLock;
  /** Host space of what is freed is given back. */
  readonly punches: boolean;
  /** Asks for a call of `maintain` in another thread; undefined: the caller of the writer does it. */
  readonly requestMaintenance: (() => void) | undefined;
}

/**
 * Look where the metadata of an image is, and refuse what must not be written to.
 *
 * @throws {CorruptionError} tables lie upon each other
 */
export function prepareQcow2Writing(layout: Qcow2Layout, storage: WritableStorage): Qcow2Writing {
  const { header } = layout;
  const memory = createSharedState(header, layout.virtualSize);
  const state = new SharedState(memory);
  const table = new RefcountBlockTable(storage, state, layout.clusterSize);
  const blocks: number[] = [];
  for (let block = table.linkedBlock(0, 1); block >= 0; block = table.linkedBlock(block + 1, 1)) {
    blocks.push(table.blockOffset(block) / layout.clusterSize);
  }
  let l2Tables = 0;
  for (const _ of readL2Offsets(layout, storage)) l2Tables++;
  const metadata = createMetadataSet(blocks.length * 2 + l2Tables + layout.l1Entries / 4);
  const map = qcow2MetadataMap(metadata);
  const snapshots = createSharedSnapshotTable(layout);
  map.ranges = metadataRanges(layout, state, new SharedSnapshotTable(snapshots));
  const refuseIf = (lies: boolean, what: string, cluster: number): void => {
    if (!lies) return;
    const reason = `the ${what} at ${hex(cluster * layout.clusterSize)} lies on other metadata: see tsimgfs check, or read the image with -r`;
    throw new CorruptionError(storage.path, reason);
  };
  for (const block of blocks) {
    refuseIf(map.overlapOfRanges(block, 1) !== undefined, "refcount block", block);
    refuseIf(!map.add(block), "refcount block", block);
  }
  addL2Tables(map, layout, storage, refuseIf);
  const bitmaps = loadTrackedBitmaps(layout, storage);
  return { format: "qcow2", state: memory, metadata, bitmaps, snapshots };
}

/** What is changed in place belongs to one entry alone; what several share is copied first. */
function addL2Tables(
  map: MetadataMap,
  layout: Qcow2Layout,
  storage: WritableStorage,
  refuseIf: (lies: boolean, what: string, cluster: number) => void,
): void {
  for (const { cluster, copied } of readL2Offsets(layout, storage)) {
    if (!copied) continue;
    refuseIf(map.overlapOfRanges(cluster, 1) !== undefined, "L2 table", cluster);
    refuseIf(!map.add(cluster), "L2 table", cluster);
  }
  for (const { cluster, copied } of readL2Offsets(layout, storage)) {
    if (!copied) refuseIf(map.has(cluster), "L2 table", cluster);
  }
  for (const { cluster, copied } of readL2Offsets(layout, storage)) {
    if (!copied) map.add(cluster);
  }
}

/** The clusters that active L1 entries refer to; those that are not aligned are left out. */
function* readL2Offsets(
  layout: Qcow2Layout,
  storage: WritableStorage,
): Generator<{ cluster: number; copied: boolean }> {
  const piece = NativeBuffer.allocate(L1_PIECE);
  const length = layout.l1Entries * 8;
  for (let at = 0; at < length; at += L1_PIECE) {
    const count = Math.min(L1_PIECE, length - at);
    storage.readAt(piece, 0, count, layout.header.l1_table_offset + at);
    for (let entry = 0; entry < count; entry += 8) {
      const hi = piece.view.getUint32(entry);
      const offset = entryHostOffset(hi, piece.view.getUint32(entry + 4));
      if (offset === 0 || offset % layout.clusterSize !== 0) continue;
      yield { cluster: offset / layout.clusterSize, copied: (hi & COPIED_HI) !== 0 };
    }
  }
}

/** The writer of one thread. */
export function attachQcow2Writer(
  image: Qcow2Image,
  files: { storage: WritableStorage; dataStorage: WritableStorage },
  shared: Qcow2Writing,
  { lock, punches, requestMaintenance }: WriterOptions,
): Qcow2Writer {
  const { layout, tableCache } = image;
  const state = new SharedState(shared.state);
  const metadata = qcow2MetadataMap(shared.metadata);
  const headerWriter = new HeaderWriter(files.storage, layout.header.version);
  const snapshots = new SharedSnapshotTable(shared.snapshots);
  image.shareSnapshots(snapshots);
  const allocator = new ClusterAllocator({
    layout,
    storage: files.storage,
    state,
    lock,
    metadata,
    headerWriter,
    snapshots,
    punches,
    requestMaintenance,
  });
  return new Qcow2Writer(
    {
      layout,
      image,
      lock,
      ...files,
      state,
      tableCache,
      allocator,
      metadata,
      headerWriter,
      snapshots,
      punches,
    },
    shared.bitmaps,
  );
}
