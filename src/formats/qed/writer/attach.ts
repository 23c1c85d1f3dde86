/** Opening a QED image for writing: what threads share, and the writer of each thread. */

import { CorruptionError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import { createMetadataSet, MetadataMap } from "../../metadata-map.ts";
import type { UsedClusters } from "../check/used-clusters.ts";
import { type Header, wholeClusters } from "../header.ts";
import type { QedLayout } from "../layout.ts";
import type { QedImage } from "../qed-image.ts";
import { ENTRY_UNALLOCATED, entryAt } from "../table-entry.ts";
import { ClusterAllocator } from "./cluster-allocator.ts";
import { examineTables } from "./examine-tables.ts";
import { HeaderWriter } from "./header-writer.ts";
import { QedWriter } from "./qed-writer.ts";
import { createSharedState, NUMBER, SharedState } from "./shared-state.ts";
import { UnusedClusters } from "./unused-clusters.ts";

/** Bytes of unused clusters that are remembered, at the most: before they are used they become zeros. */
const GAPS_MAX = 1024 * 1024 * 1024;

/** What the writers of all threads share: plain data for structured clone. */
export interface QedWriting {
  readonly format: "qed";
  readonly state: SharedArrayBuffer;
  readonly metadata: SharedArrayBuffer;
}

/** What an image is written with. */
export interface WriterOptions {
  readonly lock: AccessLock;
  /** Asks for a call of `maintain` in another thread; undefined: the caller of the writer does it. */
  readonly requestMaintenance: (() => void) | undefined;
}

/**
 * Look at all tables of an image, and refuse what must not be written to. QED counts nothing: only the
 * tables tell where the clusters end that are in use, and whether two entries refer to the same one.
 *
 * @throws {CorruptionError | UnsupportedError | StorageError}
 */
export function prepareQedWriting(layout: QedLayout, storage: WritableStorage): QedWriting {
  const { header } = layout;
  if (header.l1_table_offset === 0) {
    throw new CorruptionError(storage.path, "the L1 table lies on the header: read it with -r");
  }
  const { used, usedEnd, result } = examineTables(storage);
  const clusters =
    wholeClusters(storage.currentLength(), header.cluster_size) / header.cluster_size;
  const memory = createSharedState();
  const state = new SharedState(memory);
  // Only a feature that we do not know can say what clusters are for which no table refers to.
  const kept = header.compat_features === 0n ? 0 : clusters;
  const next = Math.max(usedEnd / header.cluster_size, kept);
  state.set(NUMBER.virtualSize, header.image_size);
  state.set(NUMBER.fileClusters, clusters);
  state.set(NUMBER.nextCluster, next);
  state.set(NUMBER.reservedEnd, next);
  state.set(NUMBER.usedAtOpen, result.allocatedClusters);
  state.set(NUMBER.keptClusters, kept);
  if (header.compat_features === 0n) rememberGaps(state, used, header);
  return { format: "qed", state: memory, metadata: noteTables(layout) };
}

/** What a writer that was stopped left behind among clusters in use is used first; as much as there is room for. */
function rememberGaps(
  state: SharedState,
  used: UsedClusters,
  { cluster_size, header_size }: Header,
): void {
  const gaps = new UnusedClusters(state.gaps);
  let left = Math.floor(GAPS_MAX / cluster_size);
  for (const { first, count } of used.gaps(header_size)) {
    const taken = Math.min(count, left);
    if (taken === 0 || !gaps.add(first, taken)) return;
    left -= taken;
  }
}

/** All L2 tables, with room for as many as the L1 table has entries for. */
function noteTables({ l1, header }: QedLayout): SharedArrayBuffer {
  const { cluster_size, table_size } = header;
  const entries = new Int32Array(l1);
  const memory = createMetadataSet((entries.length / 2) * table_size);
  const map = metadataMap(memory);
  for (let at = 0; at < entries.length; at += 2) {
    const offset = entryAt(entries, at);
    if (offset === ENTRY_UNALLOCATED) continue;
    for (let cluster = 0; cluster < table_size; cluster++) map.add(offset / cluster_size + cluster);
  }
  return memory;
}

function metadataMap(memory: SharedArrayBuffer): MetadataMap {
  return new MetadataMap(memory, "an L2 table");
}

/** The writer of one thread. */
export function attachQedWriter(
  image: QedImage,
  storage: WritableStorage,
  shared: QedWriting,
  { lock, requestMaintenance }: WriterOptions,
): QedWriter {
  const { layout } = image;
  const { cluster_size, table_size, header_size, l1_table_offset } = layout.header;
  const state = new SharedState(shared.state);
  const metadata = metadataMap(shared.metadata);
  metadata.ranges = [
    { name: "the header", firstCluster: 0, clusters: Math.max(header_size, 1) },
    { name: "the L1 table", firstCluster: l1_table_offset / cluster_size, clusters: table_size },
  ];
  const headerWriter = new HeaderWriter(storage);
  const allocator = new ClusterAllocator({
    layout,
    storage,
    state,
    lock,
    headerWriter,
    requestMaintenance,
  });
  return new QedWriter({
    layout,
    image,
    lock,
    storage,
    state,
    allocator,
    metadata,
    headerWriter,
  });
}
