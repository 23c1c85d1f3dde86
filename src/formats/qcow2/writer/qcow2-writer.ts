/**
 * Changing a qcow2 image: where a write goes, and how entries of L2 tables come to refer to it. Tables
 * are written through; native-notes/writing.md says in which order. What several threads must not do at once is under
 * the exclusive lock of the image, which the block layer holds.
 */

import { hex } from "../../../errors.ts";
import {
  ALLOCATION,
  type Allocation,
  type BitmapEdit,
  type Change,
  type Deallocation,
  type DirtyBitmaps,
  type FormatWriter,
  type HostPlace,
  type Occupation,
  type WritePlan,
  type ZeroProgress,
  type ZeroSpace,
} from "../../writer.ts";
import { isEncryptedQcow2 } from "../encryption.ts";
import { AUTOCLEAR } from "../features.ts";
import { Qcow2SnapshotWriter } from "../snapshots/snapshot-writer.ts";
import { BitmapEditor } from "./bitmap-editor.ts";
import { BitmapWriter } from "./bitmap-writer.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import { CompressedWriter } from "./compressed-writer.ts";
import { type SharedBitmap, SharedDirtyBitmaps } from "./dirty-bitmaps.ts";
import { encodeEntry } from "./l2-entry.ts";
import { MappingCursor } from "./mapping-cursor.ts";
import { metadataRanges } from "./metadata-ranges.ts";
import { checkResizable, growL1Table, setVirtualSize } from "./resizer.ts";
import { NUMBER, type SharedState, WORD } from "./shared-state.ts";
import { ALL_SUBCLUSTERS, bitRange, hasBit, SUBCLUSTERS } from "./subclusters.ts";
import { TailDropper } from "./tail-dropper.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";
import { ZeroWriter } from "./zero-writer.ts";

/** Autoclear bits of what stays true whatever is written here. */
const MAINTAINED = AUTOCLEAR.bitmaps | AUTOCLEAR.rawExternalData;

export class Qcow2Writer implements FormatWriter {
  readonly unit: number;
  readonly clusterSize: number;
  readonly hasZeroClusters: boolean;
  readonly compressed: CompressedWriter | undefined;
  readonly deallocation: Deallocation;
  readonly dirtyBitmaps: DirtyBitmaps | undefined;
  readonly growthOccupation: Occupation | undefined;
  readonly snapshots: Qcow2SnapshotWriter;

  readonly #context: Qcow2WriterContext;
  readonly #allocator: ClusterAllocator;
  readonly #state: SharedState;
  readonly #cursor: MappingCursor;
  readonly #zeroWriter: ZeroWriter;
  readonly #bitmaps: BitmapWriter | undefined;
  readonly #hasDataFile: boolean;
  readonly #extended: boolean;
  #bitmapsStored = false;
  #generation = -1;
  #pretendedSize: number | undefined;

  /** @param bitmaps the persistent bitmaps that are kept up */
  constructor(context: Qcow2WriterContext, bitmaps: readonly SharedBitmap[]) {
    const { layout } = context;
    this.#context = context;
    this.#allocator = context.allocator;
    this.#state = context.state;
    this.#cursor = new MappingCursor(context);
    this.#hasDataFile = layout.dataFile !== undefined;
    this.#extended = layout.extendedL2;
    this.clusterSize = layout.clusterSize;
    this.hasZeroClusters = layout.header.version >= 3;
    this.unit = layout.extendedL2 ? layout.clusterSize / SUBCLUSTERS : layout.clusterSize;
    this.#zeroWriter = new ZeroWriter(context, this.#cursor, this.unit);
    this.deallocation = this.#zeroWriter;
    this.dirtyBitmaps = bitmaps.length === 0 ? undefined : new SharedDirtyBitmaps(bitmaps);
    const hasBitmaps = layout.extensions.bitmaps !== undefined;
    this.#bitmaps = hasBitmaps ? new BitmapWriter(context, bitmaps) : undefined;
    // As QEMU: who writes to the data file alone need not ask whether a table refers to it.
    this.growthOccupation = layout.dataFile?.raw === true ? "metadata" : undefined;
    this.snapshots = new Qcow2SnapshotWriter(context);
    // Streams would be there to read for everybody; QEMU's tools do not write them to such images, too.
    const cannotCompress = this.#hasDataFile || isEncryptedQcow2(layout);
    this.compressed = cannotCompress ? undefined : new CompressedWriter(context, this.#cursor);
  }

  begin(change: Change): void {
    if (this.#state.isSet(WORD.corrupt)) this.#allocator.marks.markCorrupt("it was found corrupt");
    const begun = change === "contents" ? WORD.begun : WORD.placesBegun;
    if (this.#state.isSet(begun)) return;
    this.#allocator.requestMaintenance();
    this.#allocator.changeHeader(() => {
      if (this.#context.headerWriter.clearAutoclear(MAINTAINED)) this.#allocator.marks.sync();
      if (change === "contents") this.#bitmaps?.begin();
      this.#state.raise(begun);
    });
  }

  editBitmaps(edits: readonly BitmapEdit[]): void {
    if (this.#hasDataFile) this.#allocator.marks.sync(this.#context.dataStorage);
    this.#storeBitmaps();
    this.#allocator.giveBack();
    new BitmapEditor(this.#context).apply(edits);
  }

  /** At the end. Once: what edits make of the directory has entries at other places than what was marked. */
  #storeBitmaps(): void {
    if (!this.#state.isSet(WORD.begun) || this.#bitmapsStored) return;
    this.#bitmapsStored = true;
    this.#bitmaps?.store();
  }

  changeHeader(action: () => void): void {
    this.#allocator.changeHeader(action);
  }

  mapInPlace(guestOffset: number, maxLength: number, out: HostPlace): number {
    const cursor = this.#cursor;
    const cluster = Math.floor(guestOffset / this.clusterSize);
    let length: number;
    do {
      // Readers bring slices into the cache meanwhile, and may take the place of this one.
      if (!cursor.open(guestOffset)) return 0;
      length = this.#inPlaceRun(cluster, guestOffset % this.clusterSize, maxLength, out);
    } while (!cursor.isValid());
    if (length < 0) {
      cursor.peek(cluster);
      cursor.throwFault(cluster, cursor.entry.fault ?? "it has changed");
    }
    if (length > 0 && !this.#hasDataFile) this.#protectMetadata(out.hostOffset, length);
    return length;
  }

  /** Bytes in place from a byte of a cluster on; -1: the cluster's entry cannot be right. */
  #inPlaceRun(cluster: number, inCluster: number, maxLength: number, out: HostPlace): number {
    const { clusterSize, unit } = this;
    const cursor = this.#cursor;
    const { entry } = cursor;
    cursor.peek(cluster);
    if (entry.fault !== undefined) return -1;
    const first = Math.floor(inCluster / unit);
    if (!this.#isOwn() || !hasBit(entry.dataBits, first)) return 0;
    const host = entry.host;
    out.hostOffset = host + inCluster;
    let last = first + 1;
    while (last * unit < clusterSize && hasBit(entry.dataBits, last)) last++;
    // Clusters that follow on the host too are written in one go.
    let end = last * unit;
    for (let next = cluster + 1; end % clusterSize === 0 && end - inCluster < maxLength; next++) {
      if (next >= cursor.endCluster) break;
      cursor.peek(next);
      const isData = this.#isOwn() && entry.dataBits >>> 0 === ALL_SUBCLUSTERS;
      if (!isData || entry.host !== host + end || entry.fault !== undefined) break;
      end += clusterSize;
    }
    return Math.min(end - inCluster, maxLength);
  }

  allocate(guestOffset: number, length: number, plan: WritePlan): Allocation {
    // The dirty bit is there before anything that a crash could leave behind.
    if (!this.#state.isSet(WORD.dirty)) return ALLOCATION.needsReservation;
    const table = this.#cursor.openOwn(guestOffset, plan);
    if (table !== ALLOCATION.inPlace) return table;
    const { unit } = this;
    const cluster = Math.floor(guestOffset / this.clusterSize);
    this.#cursor.decode(cluster);
    plan.coverStart = guestOffset - (guestOffset % unit);
    plan.coverEnd = Math.ceil((guestOffset + length) / unit) * unit;
    plan.replaces = 0;
    return this.#isOwn() ? this.#planPlace(cluster, plan) : this.#planFresh(cluster, plan);
  }

  /** Whether the decoded entry has a place on the host that nothing else refers to. */
  #isOwn(): boolean {
    const { compressed, hasCluster, copied } = this.#cursor.entry;
    return !compressed && (this.#hasDataFile || (hasCluster && copied));
  }

  /** Clusters from the reservation; the plan's cover is what is wanted, and may become less. */
  #planFresh(cluster: number, plan: WritePlan): Allocation {
    const { clusterSize } = this;
    const { entry, endCluster } = this.#cursor;
    let wanted = 1;
    if (this.#extended && (entry.hasCluster || entry.compressed)) {
      // Sub-clusters that have data must come along: the cluster is replaced as a whole.
      plan.coverStart = cluster * clusterSize;
      plan.coverEnd = plan.coverStart + clusterSize;
    } else {
      const end = Math.min(Math.ceil(plan.coverEnd / clusterSize), endCluster);
      while (cluster + wanted < end && this.#isReplaceable(cluster + wanted)) wanted++;
    }
    const count = this.#allocator.take(wanted);
    if (count === 0) return ALLOCATION.needsReservation;
    plan.fresh = true;
    plan.coverEnd = Math.min(plan.coverEnd, (cluster + count) * clusterSize);
    plan.hostOffset = this.#allocator.taken * clusterSize + (plan.coverStart % clusterSize);
    return ALLOCATION.planned;
  }

  /** Whether a cluster can get a new place together with those before it. */
  #isReplaceable(cluster: number): boolean {
    this.#cursor.decode(cluster);
    const { compressed, hasCluster } = this.#cursor.entry;
    return this.#extended ? !compressed && !hasCluster : !this.#isOwn();
  }

  /** The place on the host is given: zeros that keep theirs, sub-clusters, an external data file. */
  #planPlace(cluster: number, plan: WritePlan): Allocation {
    const { clusterSize, unit } = this;
    const cursor = this.#cursor;
    const { entry } = cursor;
    const clusterStart = cluster * clusterSize;
    const first = (plan.coverStart - clusterStart) / unit;
    if (hasBit(entry.dataBits, first)) return ALLOCATION.inPlace;
    const host = entry.hasCluster ? entry.host : clusterStart;
    plan.fresh = false;
    plan.hostOffset = host + first * unit;
    let last = first + 1;
    while (last * unit < clusterSize && !hasBit(entry.dataBits, last)) last++;
    let end = clusterStart + last * unit;
    // Whole clusters without data follow, at places that follow.
    for (let next = cluster + 1; end % clusterSize === 0 && end < plan.coverEnd; next++) {
      if (next >= cursor.endCluster) break;
      cursor.decode(next);
      if (!this.#isOwn() || entry.dataBits !== 0) break;
      const place = entry.hasCluster ? entry.host : next * clusterSize;
      if (place !== host + (next - cluster) * clusterSize) break;
      end += clusterSize;
    }
    plan.coverEnd = Math.min(plan.coverEnd, end);
    if (!this.#hasDataFile) {
      this.#protectMetadata(plan.hostOffset, plan.coverEnd - plan.coverStart);
    }
    return ALLOCATION.planned;
  }

  link(plan: WritePlan): void {
    const cursor = this.#cursor;
    if (plan.replaces !== 0) {
      cursor.linkCopy(plan);
      return;
    }
    if (plan.streamBytes.length > 0) {
      this.compressed?.link(plan);
      return;
    }
    const { clusterSize } = this;
    const end = Math.ceil(plan.coverEnd / clusterSize);
    let cluster = Math.floor(plan.coverStart / clusterSize);
    while (cluster < end) {
      if (!cursor.open(cluster * clusterSize)) {
        this.#allocator.marks.markCorrupt(`the L2 table for ${hex(cluster * clusterSize)} is gone`);
      }
      const sliceEnd = Math.min(end, cursor.endCluster);
      this.#linkInSlice(plan, cluster, sliceEnd);
      cluster = sliceEnd;
    }
  }

  /** Link clusters of a plan, all in the open slice. */
  #linkInSlice(plan: WritePlan, first: number, end: number): void {
    const cursor = this.#cursor;
    const { clusterSize, unit } = this;
    const { entry } = cursor;
    const planned = Math.floor(plan.coverStart / clusterSize);
    const host = plan.hostOffset - (plan.coverStart % clusterSize);
    for (let cluster = first; cluster < end; cluster++) {
      const start = cluster * clusterSize;
      const from = Math.max(0, plan.coverStart - start) / unit;
      const to = Math.min(clusterSize, plan.coverEnd - start) / unit;
      const covered = this.#extended ? bitRange(from, to) : ALL_SUBCLUSTERS;
      cursor.decode(cluster);
      const place = host + (cluster - planned) * clusterSize;
      const keepsPlace = entry.hasCluster && entry.host === place;
      if (!keepsPlace) cursor.freeOld();
      const dataBits = (keepsPlace ? entry.dataBits : 0) | covered;
      const zeroBits = entry.zeroBits & ~covered;
      const at = cursor.entryAt(cluster);
      encodeEntry(cursor.entries.view, at, this.#extended, place, zeroBits, dataBits);
    }
    cursor.write(first, end);
  }

  abandon(plan: WritePlan): void {
    const { clusterSize } = this;
    if (plan.streamBytes.length > 0) {
      this.compressed?.abandon();
      return;
    }
    const first = Math.floor(plan.hostOffset / clusterSize);
    if (plan.replaces !== 0) this.#allocator.frees.add(first, 1);
    else if (plan.fresh) {
      const end = Math.ceil(plan.coverEnd / clusterSize);
      // They may hold a part of what was to be written, and become zeros before anybody gets them.
      this.#allocator.frees.add(first, end - Math.floor(plan.coverStart / clusterSize));
    }
    this.#allocator.frees.publish();
  }

  zero(
    guestOffset: number,
    length: number,
    space: ZeroSpace,
    backed: number,
    plan: WritePlan,
    out: ZeroProgress,
  ): void {
    this.#zeroWriter.zero(guestOffset, length, space, backed, plan, out);
  }

  flush(): void {
    if (this.#hasDataFile) this.#allocator.marks.sync(this.#context.dataStorage);
    this.#allocator.flush();
  }

  reserve(): void {
    this.#allocator.reserve();
  }

  maintain(): void {
    this.#allocator.maintain();
  }

  hasFrees(): boolean {
    return this.#allocator.frees.hasAny();
  }

  close(): void {
    if (this.#state.isSet(WORD.corrupt)) {
      this.flush();
      return;
    }
    if (this.#hasDataFile) this.#allocator.marks.sync(this.#context.dataStorage);
    // Tables that say nothing but zeros say what no table says, unless a backing file shows through.
    if (this.#context.layout.backingFile === undefined) {
      for (const l1Index of this.#state.zeroedTables()) this.#cursor.dropTable(l1Index, "zeros");
    }
    this.compressed?.close();
    try {
      this.#storeBitmaps();
    } finally {
      this.#allocator.close();
    }
  }

  checkResizable(_oldSize: number, newSize: number): void {
    checkResizable(this.#context);
    this.#bitmaps?.checkResizable(newSize);
  }

  growTables(virtualSize: number): void {
    growL1Table(this.#context, virtualSize);
  }

  setVirtualSize(virtualSize: number): void {
    const change = (): void => setVirtualSize(this.#context, virtualSize);
    if (this.#bitmaps === undefined) change();
    else this.#bitmaps.resize(virtualSize, change);
  }

  dropTail(virtualSize: number): void {
    new TailDropper(this.#context, this.#cursor).drop(virtualSize);
  }

  pretendSize(virtualSize: number | undefined): void {
    this.#pretendedSize = virtualSize;
    this.#generation = -1;
  }

  refresh(generation: number): void {
    if (generation === this.#generation) return;
    this.#generation = generation;
    const { layout, image, metadata, snapshots } = this.#context;
    metadata.ranges = metadataRanges(layout, this.#state, snapshots);
    image.adopt(
      this.#pretendedSize ?? this.#state.get(NUMBER.virtualSize),
      this.#state.get(NUMBER.l1Offset),
      this.#state.get(NUMBER.l1Size),
    );
  }

  #protectMetadata(hostOffset: number, length: number): void {
    const first = Math.floor(hostOffset / this.clusterSize);
    const end = Math.ceil((hostOffset + length) / this.clusterSize);
    const what = this.#context.metadata.overlap(first, end - first);
    if (what === undefined) return;
    this.#allocator.marks.markCorrupt(`data at ${hex(hostOffset)} lies on ${what}`, hostOffset);
  }
}
