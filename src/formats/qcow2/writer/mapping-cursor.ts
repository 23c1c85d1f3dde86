/**
 * The entries of L2 tables, one slice of a table at a time: found through the L1 table, decoded, and
 * written back. A table that others refer to is copied before it is changed. Under the exclusive lock of
 * the image, but for what says otherwise.
 */

import { hex } from "../../../errors.ts";
import type { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import { ALLOCATION, type Allocation, type WritePlan } from "../../writer.ts";
import { ActiveTables } from "./active-tables.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import { L2Entry } from "./l2-entry.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

export class MappingCursor {
  /** What `decode` and `peek` found. */
  readonly entry: L2Entry;
  /** Guest bytes that one L2 table covers. */
  readonly l2Coverage: number;
  /** Clusters that one slice maps. */
  readonly sliceEntries: number;

  readonly #tables: ActiveTables;
  readonly #allocator: ClusterAllocator;
  readonly #metadata: MetadataMap;
  readonly #clusterSize: number;
  readonly #l2Entries: number;
  readonly #entryBytes: number;
  readonly #extended: boolean;
  readonly #hasDataFile: boolean;
  /** Host offset of the open slice, and the guest cluster of its first entry. */
  #sliceOffset = 0;
  #firstCluster = 0;

  constructor(context: Qcow2WriterContext) {
    const { layout, storage, state, tableCache } = context;
    this.#tables = new ActiveTables(layout, storage, state, tableCache);
    this.#allocator = context.allocator;
    this.#metadata = context.metadata;
    this.#clusterSize = layout.clusterSize;
    this.#l2Entries = layout.l2Entries;
    this.#entryBytes = layout.l2EntryBytes;
    this.#extended = layout.extendedL2;
    this.#hasDataFile = layout.dataFile !== undefined;
    this.entry = new L2Entry({
      extended: layout.extendedL2,
      version: layout.header.version,
      clusterBits: layout.clusterBits,
      clusterSize: layout.clusterSize,
      hasDataFile: this.#hasDataFile,
    });
    this.sliceEntries = tableCache.sliceSize / layout.l2EntryBytes;
    this.l2Coverage = layout.clusterSize * layout.l2Entries;
  }

  /** The first guest cluster that the open slice does not map. */
  get endCluster(): number {
    return this.#firstCluster + this.sliceEntries;
  }

  /** Where `entryAt` counts from. */
  get entries(): NativeBuffer {
    return this.#tables.entries;
  }

  /** The L2 table of an offset exists. */
  hasTable(guestOffset: number): boolean {
    this.#findTable(guestOffset);
    return this.#tables.l2Offset !== 0;
  }

  /**
   * Open the slice that maps an offset, if the image has a table for it that nothing else refers to. Also
   * under the shared lock: then what was decoded counts only if `isValid` says so afterwards.
   */
  open(guestOffset: number): boolean {
    this.#findTable(guestOffset);
    const { l2Offset, l2Copied } = this.#tables;
    if (l2Offset === 0 || !l2Copied) return false;
    this.#locate(guestOffset, l2Offset);
    return true;
  }

  /** Whether the slice is still the one that was opened. */
  isValid(): boolean {
    return this.#tables.isValid();
  }

  /**
   * Open the slice that maps an offset in a table that may be changed: a new one, or a copy, if need be.
   *
   * @param plan overwritten if the table was copied
   */
  openOwn(guestOffset: number, plan: WritePlan): Allocation {
    if (this.open(guestOffset)) return ALLOCATION.inPlace;
    const { l2Offset } = this.#tables;
    if (this.#allocator.take(1) === 0) return ALLOCATION.needsReservation;
    const cluster = this.#allocator.taken;
    const offset = cluster * this.#clusterSize;
    const l1Index = Math.floor(guestOffset / this.l2Coverage);
    if (l2Offset === 0) {
      // It reads as zeros already, and so says that nothing is allocated.
      this.#tables.forget(offset);
      this.#metadata.add(cluster);
      this.#tables.setL2(l1Index, offset);
      this.#locate(guestOffset, offset);
      return ALLOCATION.inPlace;
    }
    try {
      this.#tables.copyTable(l2Offset, offset);
    } catch (error) {
      this.#allocator.frees.add(cluster, 1);
      this.#allocator.frees.publish();
      throw error;
    }
    plan.coverStart = l1Index * this.l2Coverage;
    plan.coverEnd = plan.coverStart + this.l2Coverage;
    plan.hostOffset = offset;
    plan.fresh = false;
    plan.replaces = l2Offset;
    return ALLOCATION.copiedTable;
  }

  /** Let the L1 table refer to a copy, which is durable, instead of what it was copied from. */
  linkCopy(plan: WritePlan): void {
    const l1Index = plan.coverStart / this.l2Coverage;
    this.#metadata.remove(plan.replaces / this.#clusterSize);
    this.#metadata.add(plan.hostOffset / this.#clusterSize);
    this.#tables.setL2(l1Index, plan.hostOffset);
    this.#allocator.frees.add(plan.replaces / this.#clusterSize, 1);
    this.#allocator.frees.publish();
  }

  /**
   * Let the L1 table refer to no table any more, where it says no more than that.
   *
   * @param says zeros: which no table says too, if no backing file shows through
   */
  dropTable(l1Index: number, says: "zeros" | "nothing"): void {
    this.#tables.findL2(l1Index);
    const { l2Offset, l2Copied } = this.#tables;
    if (l2Offset === 0 || !l2Copied || !this.#tables.isBlank(l2Offset, says)) return;
    this.#unlink(l1Index, l2Offset);
  }

  /**
   * Let the L1 table refer to no table any more, whatever it says.
   *
   * @returns what it said, for `decodeFrom`: its references are the caller's to free; undefined: there is none
   */
  unlinkTable(l1Index: number): NativeBuffer | undefined {
    this.#findTable(l1Index * this.l2Coverage);
    const { l2Offset } = this.#tables;
    if (l2Offset === 0) return undefined;
    const table = this.#tables.readTable(l2Offset);
    this.#unlink(l1Index, l2Offset);
    return table;
  }

  #unlink(l1Index: number, l2Offset: number): void {
    this.#tables.setL2(l1Index, 0);
    this.#metadata.remove(l2Offset / this.#clusterSize);
    this.#allocator.frees.add(l2Offset / this.#clusterSize, 1);
    this.#allocator.frees.publish();
  }

  /**
   * Decode entry `index` of a whole table, the entry of a guest cluster.
   *
   * @returns false: it cannot be right
   */
  decodeFrom({ view }: NativeBuffer, index: number, cluster: number): boolean {
    const at = index * this.#entryBytes;
    const zeroBits = this.#extended ? view.getUint32(at + 8) : 0;
    const dataBits = this.#extended ? view.getUint32(at + 12) : 0;
    const guestOffset = cluster * this.#clusterSize;
    this.entry.decode(view.getUint32(at), view.getUint32(at + 4), zeroBits, dataBits, guestOffset);
    return this.entry.fault === undefined;
  }

  /** Decode the entry of a guest cluster in the open slice; its fault is not looked at. */
  peek(cluster: number): void {
    const word = ((cluster - this.#firstCluster) * this.#entryBytes) / 4;
    const tables = this.#tables;
    const zeroBits = this.#extended ? tables.wordAt(word + 2) : 0;
    const dataBits = this.#extended ? tables.wordAt(word + 3) : 0;
    const hi = tables.wordAt(word);
    const lo = tables.wordAt(word + 1);
    this.entry.decode(hi, lo, zeroBits, dataBits, cluster * this.#clusterSize);
  }

  /**
   * As `peek`.
   *
   * @throws {CorruptionError} it cannot be right
   */
  decode(cluster: number): void {
    this.peek(cluster);
    if (this.entry.fault !== undefined) this.throwFault(cluster, this.entry.fault);
  }

  throwFault(cluster: number, fault: string): never {
    const at = this.#sliceOffset + this.entryAt(cluster);
    this.#allocator.marks.markCorrupt(`L2 entry at ${hex(at)}: ${fault}`, at);
  }

  /** Where the entry of a guest cluster is in `entries`. */
  entryAt(cluster: number): number {
    return (cluster - this.#firstCluster) * this.#entryBytes;
  }

  /** Write the entries of guest clusters, prepared in `entries`; then what they had before is free. */
  write(first: number, end: number): void {
    const start = this.entryAt(first);
    try {
      this.#tables.writeEntries(this.#sliceOffset, start, this.entryAt(end) - start);
    } catch (error) {
      this.#allocator.frees.forget();
      throw error;
    }
    this.#allocator.frees.publish();
  }

  /** One reference less for what the decoded entry refers to, as soon as it is written anew. */
  freeOld(): void {
    const { entry } = this;
    if (this.#hasDataFile) return;
    if (entry.compressed) {
      const first = Math.floor(entry.host / this.#clusterSize);
      const end = Math.ceil((entry.host + entry.compressedBytes) / this.#clusterSize);
      this.#allocator.frees.add(first, end - first);
    } else if (entry.hasCluster) this.#allocator.frees.add(entry.host / this.#clusterSize, 1);
  }

  #locate(guestOffset: number, l2Offset: number): void {
    const cluster = Math.floor(guestOffset / this.#clusterSize);
    const index = cluster % this.#l2Entries;
    const inSlice = index % this.sliceEntries;
    this.#sliceOffset = l2Offset + (index - inSlice) * this.#entryBytes;
    this.#firstCluster = cluster - inSlice;
    this.#tables.openSlice(this.#sliceOffset);
  }

  /** Look the table of an offset up, and refuse one that lies where no table can be. */
  #findTable(guestOffset: number): void {
    const l1Index = Math.floor(guestOffset / this.l2Coverage);
    this.#tables.findL2(l1Index);
    const offset = this.#tables.l2Offset;
    if (offset === 0) return;
    if (!Number.isFinite(offset) || offset % this.#clusterSize !== 0) {
      const reason = `L2 table offset ${hex(offset)} (L1 entry ${l1Index}) is not a multiple of the cluster size ${hex(this.#clusterSize)}`;
      this.#allocator.marks.markCorrupt(reason);
    }
    const other = this.#metadata.overlapOfRanges(offset / this.#clusterSize, 1);
    if (other !== undefined) {
      const reason = `L2 table offset ${hex(offset)} (L1 entry ${l1Index}) lies on ${other}`;
      this.#allocator.marks.markCorrupt(reason);
    }
  }
}
