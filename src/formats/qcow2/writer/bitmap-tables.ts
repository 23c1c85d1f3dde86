/**
 * The tables of persistent bitmaps, and their entries in the directory, which change in place. Until the mark
 * that it is in use is taken away, durably, whoever finds a bitmap knows that it is of no use; so what
 * changes before that may be torn, as long as every table that an entry names is whole.
 */

import { encode, offsetOf, sizeOf } from "../../../binary/struct.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { bitmapBytes, readTable, tableEntriesFor } from "../bitmap-bits.ts";
import {
  BITMAP_ENTRY,
  BITMAP_FLAG,
  type BitmapEntry,
  type BitmapTable,
  readBitmapEntries,
} from "../bitmap-directory.ts";
import { NUMBER, WORD } from "./shared-state.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

const TABLE_ENTRY_SIZE = 8;
/** An entry of a table that has no cluster: its bits are all 1. */
const ALL_ONES = 1n;

type EntryField = (typeof BITMAP_ENTRY)[number][0];

export class BitmapTables {
  readonly #context: Qcow2WriterContext;
  readonly #fields = NativeBuffer.allocate(sizeOf(BITMAP_ENTRY));

  constructor(context: Qcow2WriterContext) {
    this.#context = context;
  }

  /** All bitmaps, as the directory has them now. */
  entries(): BitmapEntry[] {
    const { layout, storage } = this.#context;
    const { bitmaps } = layout.extensions;
    return bitmaps === undefined ? [] : readBitmapEntries(bitmaps, storage, layout.clusterSize);
  }

  /** Mark bitmaps as in use, durably. */
  markInUse(entries: readonly BitmapEntry[]): void {
    this.setFlags(entries.map((entry) => ({ ...entry, flags: entry.flags | BITMAP_FLAG.inUse })));
  }

  /** Write the flags of entries, durably: what was written before is durable then, too. */
  setFlags(entries: readonly BitmapEntry[]): void {
    if (entries.length === 0) return;
    const { allocator } = this.#context;
    allocator.marks.sync();
    for (const { at, flags } of entries) this.#writeField(at, "flags", { flags });
    allocator.marks.sync();
  }

  /**
   * Give a bitmap that is in use a new table with these bits; what it had is free. The bits are at least as
   * many as the disk's are now.
   */
  replace(entry: BitmapEntry, bits: Uint8Array): void {
    const old = this.clustersOf(entry);
    try {
      const { offset, entries } = this.create(entry.granularityBits, bits);
      this.#context.allocator.marks.sync();
      this.#switchTable(entry, offset, entries);
    } catch (error) {
      // Wherever it stopped: clusters are counted that nothing refers to.
      this.#context.state.raise(WORD.leaks);
      throw error;
    }
    this.free(old);
  }

  /** Write a new table, which nothing refers to, and is not durable. If that fails, clusters are leaked. */
  create(granularityBits: number, bits: Uint8Array): BitmapTable {
    const { layout, state, allocator } = this.#context;
    const { clusterSize } = layout;
    const virtualSize = state.get(NUMBER.virtualSize);
    const bytes = bitmapBytes(virtualSize, granularityBits);
    const entries = tableEntriesFor(virtualSize, granularityBits, clusterSize);
    const places = contentsOf(bits, bytes, clusterSize);
    const tableClusters = Math.ceil((entries * TABLE_ENTRY_SIZE) / clusterSize);
    const dataClusters = places.filter((kind) => kind === "mixed").length;
    const first = allocator.allocateArea(tableClusters + dataClusters);
    this.#writeClusters(first, tableClusters, places, bits.subarray(0, bytes));
    return { offset: first * clusterSize, entries };
  }

  #writeClusters(
    first: number,
    tableClusters: number,
    places: readonly ClusterBits[],
    bits: Uint8Array,
  ): void {
    const { storage, layout } = this.#context;
    const { clusterSize } = layout;
    const table = NativeBuffer.allocate(tableClusters * clusterSize);
    const cluster = NativeBuffer.allocate(clusterSize);
    let next = first + tableClusters;
    for (const [index, kind] of places.entries()) {
      if (kind === "mixed") {
        const part = bits.subarray(index * clusterSize, (index + 1) * clusterSize);
        cluster.bytes.fill(0, part.length);
        cluster.bytes.set(part);
        storage.writeAt(cluster, 0, clusterSize, next * clusterSize);
        table.view.setBigUint64(index * TABLE_ENTRY_SIZE, BigInt(next) * BigInt(clusterSize));
        next++;
      } else if (kind === "ones") table.view.setBigUint64(index * TABLE_ENTRY_SIZE, ALL_ONES);
    }
    storage.writeAt(table, 0, table.length, first * clusterSize);
  }

  /** Let an entry name another table. It never says that a table is longer than it is. */
  #switchTable(entry: BitmapEntry, offset: number, entries: number): void {
    const { marks } = this.#context.allocator;
    const place = { bitmap_table_offset: BigInt(offset) };
    const size = { bitmap_table_size: entries };
    if (entries < entry.tableEntries) {
      this.#writeField(entry.at, "bitmap_table_size", size);
      marks.sync();
    }
    this.#writeField(entry.at, "bitmap_table_offset", place);
    marks.sync();
    if (entries <= entry.tableEntries) return;
    this.#writeField(entry.at, "bitmap_table_size", size);
    marks.sync();
  }

  #writeField(
    at: number,
    field: EntryField,
    values: { flags?: number; bitmap_table_size?: number; bitmap_table_offset?: bigint },
  ): void {
    const start = offsetOf(BITMAP_ENTRY, field);
    encode(BITMAP_ENTRY, values, this.#fields.bytes, "be");
    this.#context.storage.writeAt(
      this.#fields,
      start,
      sizeOf(BITMAP_ENTRY, field) - start,
      at + start,
    );
  }

  /** The clusters that a bitmap takes, rising. */
  clustersOf(entry: BitmapEntry): number[] {
    const { storage, layout } = this.#context;
    const { clusterSize } = layout;
    const clusters: number[] = [];
    const tableClusters = Math.ceil((entry.tableEntries * TABLE_ENTRY_SIZE) / clusterSize);
    for (let index = 0; index < tableClusters; index++) {
      clusters.push(entry.tableOffset / clusterSize + index);
    }
    for (const offset of readTable(entry, storage, clusterSize)) {
      if (offset > 1) clusters.push(offset / clusterSize);
    }
    return clusters.sort((a, b) => a - b);
  }

  /** Clusters that nothing refers to any more, durably or not yet: one reference less for each. */
  free(clusters: readonly number[]): void {
    const { allocator, lock } = this.#context;
    const { frees } = allocator;
    for (let start = 0; start < clusters.length; ) {
      const first = clusters[start] ?? 0;
      let count = 1;
      while (clusters[start + count] === first + count) count++;
      if (!frees.hasRoom(1)) {
        allocator.flush();
        allocator.maintain();
      }
      lock.exclusively(() => {
        frees.add(first, count);
        frees.publish();
      });
      start += count;
    }
  }
}

type ClusterBits = "zeros" | "ones" | "mixed";

/** What each cluster of a bitmap has. */
function contentsOf(bits: Uint8Array, bytes: number, clusterSize: number): ClusterBits[] {
  const kinds: ClusterBits[] = [];
  for (let start = 0; start < bytes; start += clusterSize) {
    const part = bits.subarray(start, Math.min(start + clusterSize, bytes));
    const [first] = part;
    const isUniform = part.every((byte) => byte === first);
    // Nothing is said of bits that the disk does not have.
    const isWhole = part.length === clusterSize;
    if (isUniform && first === 0) kinds.push("zeros");
    else kinds.push(isUniform && isWhole && first === 0xff ? "ones" : "mixed");
  }
  return kinds;
}
