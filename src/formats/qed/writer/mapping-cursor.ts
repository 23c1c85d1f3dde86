/**
 * The entries of L2 tables, one slice of a table at a time: found through the L1 table, and written through:
 * first to the file, then to what threads have cached of it. Under the exclusive lock of the image, but
 * for what says otherwise.
 */

import { TWO_TO_32 } from "../../../binary/words.ts";
import { hex } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { TableCache } from "../../../threads/table-cache.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import { ALLOCATION, type Allocation } from "../../writer.ts";
import { ENTRY_UNALLOCATED, entryAt } from "../table-entry.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import { type SharedState, WORD } from "./shared-state.ts";
import type { QedWriterContext } from "./writer-context.ts";

const ENTRY_SIZE = 8;

export class MappingCursor {
  /** Guest bytes that one L2 table covers. */
  readonly l2Coverage: number;

  readonly #storage: WritableStorage;
  readonly #state: SharedState;
  readonly #allocator: ClusterAllocator;
  readonly #metadata: MetadataMap;
  readonly #cache: TableCache;
  readonly #l1: Int32Array;
  readonly #l1Offset: number;
  readonly #clusterSize: number;
  readonly #tableClusters: number;
  readonly #tableEntries: number;
  /** Clusters that one slice maps. */
  readonly #sliceEntries: number;
  /** What `write` writes: the entries of one slice. */
  readonly #entries: NativeBuffer;
  readonly #l1Entry = NativeBuffer.allocate(ENTRY_SIZE);
  /** Host offset of the open slice, and the guest cluster of its first entry. */
  #sliceOffset = 0;
  #firstCluster = 0;

  constructor({ layout, image, storage, state, allocator, metadata }: QedWriterContext) {
    this.#storage = storage;
    this.#state = state;
    this.#allocator = allocator;
    this.#metadata = metadata;
    this.#cache = image.tableCache;
    this.#l1 = new Int32Array(layout.l1);
    this.#l1Offset = layout.header.l1_table_offset;
    this.#clusterSize = layout.header.cluster_size;
    this.#tableClusters = layout.header.table_size;
    this.#tableEntries = layout.tableEntries;
    this.#sliceEntries = this.#cache.sliceSize / ENTRY_SIZE;
    this.#entries = NativeBuffer.allocate(this.#cache.sliceSize);
    this.l2Coverage = this.#clusterSize * this.#tableEntries;
  }

  /** The first guest cluster that the open slice does not map. */
  get endCluster(): number {
    return this.#firstCluster + this.#sliceEntries;
  }

  /**
   * Open the slice that maps an offset, if there is a table for it. Also under the shared lock: then what
   * was read counts only if `isValid` says so afterwards.
   *
   * @throws {CorruptionError} the L1 table has changed, and not by us
   */
  open(guestOffset: number): boolean {
    const l1Index = Math.floor(guestOffset / this.l2Coverage);
    const l2Offset = entryAt(this.#l1, l1Index * 2);
    if (l2Offset === ENTRY_UNALLOCATED) return false;
    // All tables are known since open: that covers whatever can be wrong with an offset.
    if (!this.#metadata.has(l2Offset / this.#clusterSize)) {
      this.#allocator.refuseCorrupt(
        `L2 table offset ${hex(l2Offset)} (L1 entry ${l1Index}) is of no known table`,
        this.#l1Offset + l1Index * ENTRY_SIZE,
      );
    }
    this.#locate(guestOffset, l2Offset);
    return true;
  }

  /** Whether the slice is still the one that was opened. */
  isValid(): boolean {
    return this.#cache.isValid();
  }

  /** As `open`, with a new table if there is none. */
  openOwn(guestOffset: number): Allocation {
    if (this.open(guestOffset)) return ALLOCATION.inPlace;
    if (!this.#allocator.takeTable()) return ALLOCATION.needsReservation;
    const first = this.#allocator.taken;
    for (let index = 0; index < this.#tableClusters; index++) this.#metadata.add(first + index);
    // It reads as zeros already, and so says that nothing is allocated.
    this.#linkTable(Math.floor(guestOffset / this.l2Coverage), first * this.#clusterSize);
    this.#locate(guestOffset, first * this.#clusterSize);
    return ALLOCATION.inPlace;
  }

  /** The entry of a guest cluster in the open slice. */
  entryOf(cluster: number): number {
    return entryAt(this.#cache.words, this.#cache.base + (cluster - this.#firstCluster) * 2);
  }

  /** Host offset of the entry of a guest cluster in the open slice. */
  placeOf(cluster: number): number {
    return this.#sliceOffset + (cluster - this.#firstCluster) * ENTRY_SIZE;
  }

  /** Prepare the entry of a guest cluster for `write`. */
  setEntry(cluster: number, value: number): void {
    const at = (cluster - this.#firstCluster) * ENTRY_SIZE;
    const { view } = this.#entries;
    view.setUint32(at, value % TWO_TO_32, true);
    view.setUint32(at + 4, Math.floor(value / TWO_TO_32), true);
  }

  /** Write the entries of guest clusters of the open slice, all of which were set. */
  write(first: number, end: number): void {
    const start = (first - this.#firstCluster) * ENTRY_SIZE;
    const length = (end - first) * ENTRY_SIZE;
    try {
      this.#storage.writeAt(this.#entries, start, length, this.#sliceOffset + start);
    } catch (error) {
      // Nobody knows what the file has now: who wants to know reads it again.
      this.#cache.invalidate(this.#sliceOffset, this.#cache.sliceSize);
      this.#state.raise(WORD.leaks);
      throw error;
    }
    this.#cache.update(this.#entries, start, length, this.#sliceOffset + start);
  }

  /** Let an L1 entry refer to a new table. */
  #linkTable(l1Index: number, offset: number): void {
    const { view } = this.#l1Entry;
    view.setUint32(0, offset % TWO_TO_32, true);
    view.setUint32(4, Math.floor(offset / TWO_TO_32), true);
    try {
      this.#storage.writeAt(this.#l1Entry, 0, ENTRY_SIZE, this.#l1Offset + l1Index * ENTRY_SIZE);
    } catch (error) {
      // The file says one thing or the other; the next table takes the place of this one.
      this.#state.raise(WORD.leaks);
      throw error;
    }
    Atomics.store(this.#l1, l1Index * 2, view.getInt32(0, true));
    Atomics.store(this.#l1, l1Index * 2 + 1, view.getInt32(4, true));
  }

  #locate(guestOffset: number, l2Offset: number): void {
    const cluster = Math.floor(guestOffset / this.#clusterSize);
    const index = cluster % this.#tableEntries;
    const inSlice = index % this.#sliceEntries;
    this.#sliceOffset = l2Offset + (index - inSlice) * ENTRY_SIZE;
    this.#firstCluster = cluster - inSlice;
    this.#cache.lookup(this.#sliceOffset);
  }
}
