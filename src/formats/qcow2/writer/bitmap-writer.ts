/**
 * Writing persistent bitmaps: marks in the directory that they are in use, and their bits at the end. Entries
 * change in place. Until its mark is taken away, durably, whoever finds a bitmap knows that it is of no use;
 * so what changes before that may be torn, as long as every table that an entry names is whole.
 */

import { encode, offsetOf, sizeOf } from "../../../binary/struct.ts";
import { TsimgfsError } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import {
  bitCount,
  bitmapBytes,
  cutBits,
  loadBits,
  readTable,
  tableEntriesFor,
} from "../bitmap-bits.ts";
import {
  BITMAP_ENTRY,
  BITMAP_FLAG,
  type BitmapEntry,
  isUsable,
  readBitmapEntries,
} from "../bitmap-directory.ts";
import type { SharedBitmap } from "./dirty-bitmaps.ts";
import { NUMBER, WORD } from "./shared-state.ts";
import type { Qcow2WriterContext } from "./writer-context.ts";

const TABLE_ENTRY_SIZE = 8;
/** An entry of a table that has no cluster: its bits are all 1. */
const ALL_ONES = 1n;

type EntryField = (typeof BITMAP_ENTRY)[number][0];

/** A bitmap that a change of the size rewrites. */
interface ResizedBitmap {
  readonly entry: BitmapEntry;
  readonly bits: Uint8Array;
}

export class BitmapWriter {
  readonly #context: Qcow2WriterContext;
  readonly #tracked: readonly SharedBitmap[];
  readonly #fields = NativeBuffer.allocate(sizeOf(BITMAP_ENTRY));

  /** @param tracked what the writers mark */
  constructor(context: Qcow2WriterContext, tracked: readonly SharedBitmap[]) {
    this.#context = context;
    this.#tracked = tracked;
  }

  /** Before the first change of the disk: enabled bitmaps are in use, durably. */
  begin(): void {
    this.#markInUse(this.#entries().filter(({ flags }) => (flags & BITMAP_FLAG.auto) !== 0));
  }

  /**
   * Refuse a size that a bitmap cannot have.
   *
   * @throws {TsimgfsError} ENOTSUP, as QEMU: one is not consistent; EFBIG: one would need too much memory
   */
  checkResizable(virtualSize: number): void {
    const { path } = this.#context.storage;
    for (const entry of this.#entries()) {
      if (isUsable(entry) || this.#isTracked(entry)) continue;
      const reason = `bitmap "${entry.name}" is inconsistent: remove it before the size changes`;
      throw new TsimgfsError("ENOTSUP", path, reason);
    }
    for (const { name, granularityBits, bits } of this.#tracked) {
      if (bitmapBytes(virtualSize, granularityBits) <= bits.byteLength) continue;
      const reason = `bitmap "${name}" would need more than ${bits.byteLength} bytes of memory: remove it before the disk grows so much`;
      throw new TsimgfsError("EFBIG", path, reason);
    }
  }

  /**
   * Change the size of the disk, and of all bitmaps: what is new is not marked. Those that are enabled are
   * stored at the end.
   */
  resize(virtualSize: number, change: () => void): void {
    const { storage, layout, state } = this.#context;
    const old = { virtualSize: state.get(NUMBER.virtualSize), clusterSize: layout.clusterSize };
    const resized = this.#entries()
      .filter((entry) => !this.#isTracked(entry))
      .map((entry): ResizedBitmap => {
        const longest = Math.max(old.virtualSize, virtualSize);
        const bits = new Uint8Array(bitmapBytes(longest, entry.granularityBits));
        loadBits(entry, storage, old, bits);
        return { entry, bits };
      });
    this.#markInUse(resized.map(({ entry }) => entry));
    change();
    for (const { granularityBits, bits } of this.#tracked) {
      cutBits(new Uint8Array(bits), bitCount(virtualSize, granularityBits));
    }
    for (const { entry, bits } of resized) {
      cutBits(bits, bitCount(virtualSize, entry.granularityBits));
      this.#store(entry, bits);
      this.#setFlags([entry]);
    }
  }

  /** At the end: store the enabled bitmaps. No other thread uses the image any more. */
  store(): void {
    this.#context.allocator.giveBack();
    const stored: BitmapEntry[] = [];
    for (const entry of this.#entries()) {
      const bitmap = this.#tracked.find(({ at }) => at === entry.at);
      if (bitmap === undefined) continue;
      this.#store(entry, new Uint8Array(bitmap.bits));
      stored.push({ ...entry, flags: entry.flags & ~BITMAP_FLAG.inUse });
    }
    this.#setFlags(stored);
  }

  #entries(): BitmapEntry[] {
    const { layout, storage } = this.#context;
    const { bitmaps } = layout.extensions;
    return bitmaps === undefined ? [] : readBitmapEntries(bitmaps, storage, layout.clusterSize);
  }

  #isTracked({ at }: BitmapEntry): boolean {
    return this.#tracked.some((bitmap) => bitmap.at === at);
  }

  #markInUse(entries: readonly BitmapEntry[]): void {
    this.#setFlags(entries.map((entry) => ({ ...entry, flags: entry.flags | BITMAP_FLAG.inUse })));
  }

  /** Write the flags of entries, durably: what was written before is durable then, too. */
  #setFlags(entries: readonly BitmapEntry[]): void {
    if (entries.length === 0) return;
    const { allocator } = this.#context;
    allocator.marks.sync();
    for (const { at, flags } of entries) this.#writeField(at, "flags", { flags });
    allocator.marks.sync();
  }

  /**
   * Give a bitmap that is in use a new table with these bits; what it had is free. The bits must be as many
   * as the disk's are now.
   */
  #store(entry: BitmapEntry, bits: Uint8Array): void {
    const { layout, state, allocator } = this.#context;
    const { clusterSize } = layout;
    const virtualSize = state.get(NUMBER.virtualSize);
    const bytes = bitmapBytes(virtualSize, entry.granularityBits);
    const entries = tableEntriesFor(virtualSize, entry.granularityBits, clusterSize);
    const places = contentsOf(bits, bytes, clusterSize);
    const tableClusters = Math.ceil((entries * TABLE_ENTRY_SIZE) / clusterSize);
    const dataClusters = places.filter((kind) => kind === "mixed").length;
    const old = this.#clustersOf(entry);
    try {
      const first = allocator.allocateArea(tableClusters + dataClusters);
      this.#writeClusters(first, tableClusters, places, bits.subarray(0, bytes));
      allocator.marks.sync();
      this.#switchTable(entry, first * clusterSize, entries);
    } catch (error) {
      // Wherever it stopped: clusters are counted that nothing refers to.
      state.raise(WORD.leaks);
      throw error;
    }
    this.#free(old);
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
  #clustersOf(entry: BitmapEntry): number[] {
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

  #free(clusters: readonly number[]): void {
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
