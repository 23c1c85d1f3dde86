/** A snapshot table in the form that its readers accept, written to a new place. */

import { encode, offsetOf, sizeOf } from "../../../binary/struct.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { HEADER } from "../header.ts";
import { SNAPSHOT_ENTRY, SNAPSHOT_EXTRA, SNAPSHOT_EXTRA_SIZE_MAX } from "../snapshot-table.ts";
import type { Analysis } from "./analysis.ts";
import type { FreeClusters } from "./free-clusters.ts";
import type { SnapshotEntry } from "./snapshot-entries.ts";

const FIXED_SIZE = sizeOf(SNAPSHOT_ENTRY);
const EXTRA_SIZE_AT = offsetOf(SNAPSHOT_ENTRY, "extra_data_size");
/** What version 3 requires of the extra data. */
const V3_EXTRA_SIZE_MIN = sizeOf(SNAPSHOT_EXTRA, "disk_size");
const STATE_SIZE_SIZE = sizeOf(SNAPSHOT_EXTRA, "vm_state_size_large");

/** A table that is written, and waits to be referred to. */
export class NewSnapshotTable {
  readonly #offset: number;
  readonly #count: number;
  readonly #content: NativeBuffer;

  /** Make it from the entries that the analysis could read; clusters for it are taken. */
  constructor(analysis: Analysis, free: FreeClusters) {
    const { image, references } = analysis;
    const { clusterSize } = image.layout;
    const { entries } = references.snapshots;
    const size = entries.reduce((sum, entry) => sum + newSize(analysis, entry), 0);
    const clusters = Math.ceil(size / clusterSize);
    this.#count = entries.length;
    this.#content = NativeBuffer.allocate(clusters * clusterSize);
    let at = 0;
    for (const entry of entries) {
      copyEntry(analysis, entry, this.#content, at);
      at += newSize(analysis, entry);
    }
    this.#offset = clusters === 0 ? 0 : free.take(clusters) * clusterSize;
  }

  write(storage: WritableStorage): void {
    storage.writeAt(this.#content, 0, this.#content.length, this.#offset);
  }

  /** Let the header refer to it: two fields side by side, in one write. */
  enter(storage: WritableStorage): void {
    const start = offsetOf(HEADER, "nb_snapshots");
    const end = sizeOf(HEADER, "snapshots_offset");
    const header = NativeBuffer.allocate(end);
    encode(
      HEADER,
      { nb_snapshots: this.#count, snapshots_offset: this.#offset },
      header.bytes,
      "be",
    );
    storage.writeAt(header, start, end - start, start);
  }
}

/** Bytes of the extra data in the new table. */
function newExtraSize({ image }: Analysis, { extraSize }: SnapshotEntry): number {
  const kept = Math.min(extraSize, SNAPSHOT_EXTRA_SIZE_MAX);
  return image.layout.header.version < 3 ? kept : Math.max(kept, V3_EXTRA_SIZE_MIN);
}

function newSize(analysis: Analysis, entry: SnapshotEntry): number {
  return Math.ceil((FIXED_SIZE + newExtraSize(analysis, entry) + entry.textSize) / 8) * 8;
}

function copyEntry(
  analysis: Analysis,
  entry: SnapshotEntry,
  target: NativeBuffer,
  at: number,
): void {
  const { storage, layout } = analysis.image;
  const source = layout.header.snapshots_offset + entry.start;
  const extraSize = newExtraSize(analysis, entry);
  const kept = Math.min(entry.extraSize, extraSize);
  storage.readAt(target, at, FIXED_SIZE + kept, source);
  const extraAt = at + FIXED_SIZE;
  if (extraSize > kept) {
    // What the snapshot does not say is as it is for readers of such entries.
    const { view } = target;
    const stateSize = view.getUint32(at + offsetOf(SNAPSHOT_ENTRY, "vm_state_size"));
    encode(SNAPSHOT_EXTRA, { disk_size: layout.virtualSize }, target.bytes, "be", extraAt);
    if (kept < STATE_SIZE_SIZE) {
      encode(SNAPSHOT_EXTRA, { vm_state_size_large: stateSize }, target.bytes, "be", extraAt);
    }
  }
  target.view.setUint32(at + EXTRA_SIZE_AT, extraSize);
  const textAt = source + FIXED_SIZE + entry.extraSize;
  storage.readAt(target, extraAt + extraSize, entry.textSize, textAt);
}
