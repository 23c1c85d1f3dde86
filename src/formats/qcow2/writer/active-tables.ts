/**
 * The active L1 table and its L2 tables, written through: first to the file, then to what threads have
 * cached of it. Under the exclusive lock of the image, so that nobody reads in between.
 */

import assert from "node:assert";
import { swap32, TWO_TO_32 } from "../../../binary/words.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { isZero } from "../../../syscalls/zeros.ts";
import type { TableCache } from "../../../threads/table-cache.ts";
import type { Qcow2Layout } from "../layout.ts";
import { COPIED_HI, entryHostOffset, L2E_ZERO_LO } from "../table-entry.ts";
import { NUMBER, type SharedState, WORD } from "./shared-state.ts";

export class ActiveTables {
  /** What `findL2` found: host offset of the table, 0 if there is none. */
  l2Offset = 0;
  /** The table found is referred to once: it may be changed in place. */
  l2Copied = false;
  /** Room for the entries of one slice: what `writeEntries` writes. */
  readonly entries: NativeBuffer;

  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #cache: TableCache;
  readonly #l1: Int32Array | undefined;
  readonly #clusterSize: number;
  readonly #entryBytes: number;
  readonly #entry = NativeBuffer.allocate(8);

  constructor(
    layout: Qcow2Layout,
    storage: WritableStorage,
    state: SharedState,
    cache: TableCache,
  ) {
    this.#state = state;
    this.#storage = storage;
    this.#cache = cache;
    this.#l1 = layout.l1 && new Int32Array(layout.l1);
    this.#clusterSize = layout.clusterSize;
    this.#entryBytes = layout.l2EntryBytes;
    this.entries = NativeBuffer.allocate(cache.sliceSize);
  }

  /** Look an L1 entry up; behind the table there are none. Offsets that are not aligned are the caller's to refuse. */
  findL2(l1Index: number): void {
    const l1 = this.#l1;
    let hi: number;
    let lo: number;
    if (l1 !== undefined && l1Index * 2 < l1.length) {
      hi = swap32(Atomics.load(l1, l1Index * 2));
      lo = swap32(Atomics.load(l1, l1Index * 2 + 1));
    } else if (l1Index >= this.#state.get(NUMBER.l1Size)) {
      // A snapshot that was applied may have brought back a shorter table.
      hi = 0;
      lo = 0;
    } else {
      const at = this.#l1EntryAt(l1Index);
      const inSlice = at % this.#cache.sliceSize;
      do {
        this.#cache.lookup(at - inSlice);
        hi = this.wordAt(inSlice / 4);
        lo = this.wordAt(inSlice / 4 + 1);
      } while (!this.#cache.isValid());
    }
    this.l2Offset = entryHostOffset(hi, lo);
    this.l2Copied = (hi & COPIED_HI) !== 0;
  }

  /** Let an L1 entry refer to a table of its own, or to none (0). */
  setL2(l1Index: number, offset: number): void {
    assert(l1Index < this.#state.get(NUMBER.l1Size), "an L1 entry behind the table");
    const view = this.#entry.view;
    const flags = offset === 0 ? 0 : COPIED_HI;
    view.setUint32(0, (Math.floor(offset / TWO_TO_32) | flags) >>> 0);
    view.setUint32(4, offset % TWO_TO_32);
    const at = this.#l1EntryAt(l1Index);
    try {
      this.#storage.writeAt(this.#entry, 0, 8, at);
    } catch (error) {
      // The file says one thing or the other; what is not referred to is leaked.
      this.#state.raise(WORD.leaks);
      throw error;
    }
    this.#cache.update(this.#entry, 0, 8, at);
    const l1 = this.#l1;
    if (l1 !== undefined && l1Index * 2 < l1.length) {
      Atomics.store(l1, l1Index * 2, view.getInt32(0, true));
      Atomics.store(l1, l1Index * 2 + 1, view.getInt32(4, true));
    }
  }

  /** Make the slice at `offset` available to `wordAt`, for as long as no other one is looked up. */
  openSlice(offset: number): void {
    this.#cache.lookup(offset);
  }

  /** Whether the slice is still the one that was opened. */
  isValid(): boolean {
    return this.#cache.isValid();
  }

  /** A copy of a whole L2 table. */
  readTable(l2Offset: number): NativeBuffer {
    const table = NativeBuffer.allocate(this.#clusterSize);
    this.#storage.readAt(table, 0, this.#clusterSize, l2Offset);
    return table;
  }

  /** Whether a table has no clusters, and says nothing at all, or nothing but zeros. */
  isBlank(l2Offset: number, says: "zeros" | "nothing"): boolean {
    const table = this.readTable(l2Offset);
    if (says === "nothing") return isZero(table, 0, table.length);
    const { view } = table;
    for (let at = 0; at < table.length; at += this.#entryBytes) {
      if (view.getUint32(at) !== 0 || (view.getUint32(at + 4) & ~L2E_ZERO_LO) !== 0) return false;
    }
    return true;
  }

  /** Word `index` of the open slice, in the order of this machine. */
  wordAt(index: number): number {
    return swap32(Atomics.load(this.#cache.words, this.#cache.base + index));
  }

  /** Write a part of `entries` to the same part of the slice at `sliceOffset`. */
  writeEntries(sliceOffset: number, start: number, length: number): void {
    try {
      this.#storage.writeAt(this.entries, start, length, sliceOffset + start);
    } catch (error) {
      // Nobody knows what the file has now: who wants to know reads it again.
      this.#cache.invalidate(sliceOffset, this.#cache.sliceSize);
      throw error;
    }
    this.#cache.update(this.entries, start, length, sliceOffset + start);
  }

  /** Copy a whole L2 table to another place; nothing refers to it yet. */
  copyTable(from: number, to: number): void {
    const table = this.readTable(from);
    this.#storage.writeAt(table, 0, this.#clusterSize, to);
    this.#cache.invalidate(to, this.#clusterSize);
  }

  /** A cluster becomes a table: what is cached of what it was before is void. */
  forget(offset: number): void {
    this.#cache.invalidate(offset, this.#clusterSize);
  }

  #l1EntryAt(l1Index: number): number {
    return this.#state.get(NUMBER.l1Offset) + l1Index * 8;
  }
}
