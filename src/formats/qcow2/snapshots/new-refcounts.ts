/**
 * Refcounts as they will be: blocks that change are written anew at fresh clusters, and in the end a new
 * refcount table, so that all of it takes effect with one write of the header. What changes is collected
 * first, and written block by block. Under the structure mutex.
 */

import { TWO_TO_32 } from "../../../binary/words.ts";
import { CorruptionError, hex, StorageError, TsimgfsError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { createTableCache, TableCache } from "../../../threads/table-cache.ts";
import { REFCOUNT_TABLE_SIZE_MAX } from "../header.ts";
import type { Qcow2Layout } from "../layout.ts";
import { readRefcount, writeRefcount } from "../refcount-entry.ts";
import type { ClusterRun, RefcountStore } from "../writer/refcount-store.ts";
import { NUMBER, type SharedState } from "../writer/shared-state.ts";
import type { FreshClusters } from "./fresh-clusters.ts";

/** Clusters whose changes are collected together, at the most. */
const PIECE_MAX = 32768;
/** Changes that are collected before they are written, clusters: 64 MiB of memory. */
const COLLECTED_MAX = 2 ** 23;
/** Memory for refcounts that are looked up, bytes. */
const CACHE_SIZE = 4 * 1024 * 1024;
const CACHE_SLICE_MAX = 4096;

export interface NewRefcountsContext {
  readonly layout: Qcow2Layout;
  readonly storage: WritableStorage;
  readonly state: SharedState;
  readonly refcounts: RefcountStore;
}

/** A refcount block that is written anew: host offsets, 0 before where there was none. */
interface MovedBlock {
  readonly before: number;
  readonly after: number;
}

export class NewRefcounts {
  readonly #context: NewRefcountsContext;
  readonly #fresh: FreshClusters;
  readonly #clusterSize: number;
  readonly #bits: number;
  readonly #max: number;
  readonly #perPiece: number;
  readonly #entriesPerBlock: number;
  readonly #cache: TableCache;
  /** All of the cache, which nobody else uses. */
  readonly #cached: DataView;
  readonly #entriesPerSlice: number;
  readonly #block: NativeBuffer;
  /** The blocks that change. */
  readonly #blocks = new Map<number, MovedBlock>();
  /** Changes by pieces of clusters. */
  #pieces = new Map<number, Float64Array>();
  #lastPiece: Float64Array = new Float64Array(0);
  #lastIndex = -1;

  constructor(context: NewRefcountsContext, fresh: FreshClusters) {
    const { clusterSize, refcountBits } = context.layout;
    this.#context = context;
    this.#fresh = fresh;
    this.#clusterSize = clusterSize;
    this.#bits = refcountBits;
    this.#max = Math.min(2 ** refcountBits - 1, Number.MAX_SAFE_INTEGER);
    this.#entriesPerBlock = context.refcounts.entriesPerBlock;
    this.#perPiece = Math.min(PIECE_MAX, this.#entriesPerBlock);
    const sliceSize = Math.min(CACHE_SLICE_MAX, clusterSize);
    this.#cache = new TableCache(createTableCache(sliceSize, CACHE_SIZE), context.storage);
    this.#cached = new DataView(this.#cache.words.buffer);
    this.#entriesPerSlice = (sliceSize * 8) / refcountBits;
    this.#block = NativeBuffer.allocate(clusterSize);
  }

  /**
   * Change the references of a cluster.
   *
   * @param references more, or less if negative
   * @throws {TsimgfsError} as `settle`
   */
  add(cluster: number, references: number): void {
    const index = Math.floor(cluster / this.#perPiece);
    if (index !== this.#lastIndex) this.#openPiece(index);
    const at = cluster % this.#perPiece;
    this.#lastPiece[at] = (this.#lastPiece[at] ?? 0) + references;
  }

  /** As `add`, for each cluster of a run. */
  addRun({ first, count }: ClusterRun, references: number): void {
    for (let cluster = first; cluster < first + count; cluster++) this.add(cluster, references);
  }

  #openPiece(index: number): void {
    let piece = this.#pieces.get(index);
    if (piece === undefined) {
      if ((this.#pieces.size + 1) * this.#perPiece > COLLECTED_MAX) this.settle();
      piece = new Float64Array(this.#perPiece);
      this.#pieces.set(index, piece);
    }
    this.#lastPiece = piece;
    this.#lastIndex = index;
  }

  /**
   * Write what was collected to the new blocks.
   *
   * @throws {TsimgfsError} EINVAL: a refcount is too narrow for it
   * @throws {CorruptionError} the refcounts contradict the references
   */
  settle(): void {
    // New blocks are clusters themselves, which others count.
    while (this.#pieces.size > 0) {
      const pieces = this.#pieces;
      this.#pieces = new Map();
      this.#lastIndex = -1;
      for (const [index, piece] of pieces) this.#apply(index * this.#perPiece, piece);
    }
  }

  #apply(first: number, changes: Float64Array): void {
    const { storage } = this.#context;
    const block = Math.floor(first / this.#entriesPerBlock);
    const start = first % this.#entriesPerBlock;
    const at = this.#ensureBlock(block) + (start * this.#bits) / 8;
    const bytes = Math.ceil((changes.length * this.#bits) / 8);
    storage.readAt(this.#block, 0, bytes, at);
    const { view } = this.#block;
    for (let index = 0; index < changes.length; index++) {
      const change = changes[index] ?? 0;
      if (change === 0) continue;
      const refcount = readRefcount(view, index, this.#bits);
      if (refcount === 0 && !this.#fresh.has(first + index)) this.#throwFree(first + index);
      if (refcount + change < 0) this.#throwTooLow(first + index, refcount, -change);
      if (refcount + change > this.#max) this.#throwTooNarrow(first + index, refcount + change);
      writeRefcount(view, index, this.#bits, refcount + change);
    }
    storage.writeAt(this.#block, 0, bytes, at);
    this.#cache.invalidate(at - (at % this.#cache.sliceSize), bytes);
  }

  /** The new place of a block, host offset. */
  #ensureBlock(block: number): number {
    const known = this.#blocks.get(block);
    if (known !== undefined) return known.after;
    const { refcounts, storage } = this.#context;
    const before = refcounts.table.blockOffset(block);
    const cluster = this.#fresh.take(1);
    const offset = cluster * this.#clusterSize;
    if (before === 0) this.#block.bytes.fill(0);
    else storage.readAt(this.#block, 0, this.#clusterSize, before);
    storage.writeAt(this.#block, 0, this.#clusterSize, offset);
    this.#cache.invalidate(offset, this.#clusterSize);
    this.#blocks.set(block, { before, after: offset });
    this.add(cluster, 1);
    if (before !== 0) this.add(before / this.#clusterSize, -1);
    return offset;
  }

  /** The refcount of a cluster, of what was settled. */
  get(cluster: number): number {
    const block = Math.floor(cluster / this.#entriesPerBlock);
    const offset =
      this.#blocks.get(block)?.after ?? this.#context.refcounts.table.blockOffset(block);
    if (offset === 0) return 0;
    const index = cluster % this.#entriesPerBlock;
    const inSlice = index % this.#entriesPerSlice;
    this.#cache.lookup(offset + ((index - inSlice) * this.#bits) / 8);
    const sliceStart = (this.#cache.base * 32) / this.#bits;
    return readRefcount(this.#cached, sliceStart + inSlice, this.#bits);
  }

  /**
   * Write the new refcount table, after all that was collected.
   *
   * @throws {StorageError} EFBIG: it exceeds QEMU's limit
   */
  finish(): ClusterRun {
    const { state } = this.#context;
    const old = {
      first: state.get(NUMBER.refcountTableOffset) / this.#clusterSize,
      count: state.get(NUMBER.refcountTableClusters),
    };
    this.addRun(old, -1);
    this.settle();
    for (let count = Math.max(old.count, this.#tableClusters()); ; ) {
      const table = { first: this.#takeTable(count), count };
      this.addRun(table, 1);
      this.settle();
      const needed = this.#tableClusters();
      if (needed <= count) {
        this.#writeTable(table, old);
        return table;
      }
      // Counting the table itself took a block that it has no room for.
      this.addRun(table, -1);
      this.settle();
      count = this.#tableClusters();
    }
  }

  #takeTable(clusters: number): number {
    if (clusters * this.#clusterSize > REFCOUNT_TABLE_SIZE_MAX) {
      throw new StorageError("EFBIG", this.#context.storage.path, "the refcount table is full");
    }
    return this.#fresh.take(clusters);
  }

  /** Clusters of a table that has all new blocks. */
  #tableClusters(): number {
    let last = 0;
    for (const block of this.#blocks.keys()) last = Math.max(last, block);
    return Math.ceil(((last + 1) * 8) / this.#clusterSize);
  }

  #writeTable(table: ClusterRun, old: ClusterRun): void {
    const { storage } = this.#context;
    const clusterSize = this.#clusterSize;
    const content = NativeBuffer.allocate(table.count * clusterSize);
    storage.readAt(content, 0, old.count * clusterSize, old.first * clusterSize);
    for (const [block, { after }] of this.#blocks) {
      content.view.setUint32(block * 8, Math.floor(after / TWO_TO_32));
      content.view.setUint32(block * 8 + 4, after % TWO_TO_32);
    }
    storage.writeAt(content, 0, content.length, table.first * clusterSize);
  }

  /** The blocks that are written anew. */
  get movedBlocks(): ReadonlyMap<number, MovedBlock> {
    return this.#blocks;
  }

  /** Runs of clusters that were in use and are not any more, as long as the old blocks are there. */
  *freed(): Generator<ClusterRun> {
    const { storage } = this.#context;
    const old = NativeBuffer.allocate(this.#clusterSize);
    const now = NativeBuffer.allocate(this.#clusterSize);
    for (const [block, { before, after }] of this.#blocks) {
      if (before === 0) continue;
      storage.readAt(old, 0, this.#clusterSize, before);
      storage.readAt(now, 0, this.#clusterSize, after);
      const first = block * this.#entriesPerBlock;
      let start = -1;
      for (let index = 0; index <= this.#entriesPerBlock; index++) {
        const isFreed =
          index < this.#entriesPerBlock &&
          readRefcount(now.view, index, this.#bits) === 0 &&
          readRefcount(old.view, index, this.#bits) !== 0;
        if (isFreed && start < 0) start = index;
        if (isFreed || start < 0) continue;
        yield { first: first + start, count: index - start };
        start = -1;
      }
    }
  }

  #throwFree(cluster: number): never {
    const offset = cluster * this.#clusterSize;
    const reason = `the cluster at ${hex(offset)} is in use, but its refcount is 0; see tsimgfs check`;
    throw new CorruptionError(this.#context.storage.path, reason, { offset });
  }

  #throwTooLow(cluster: number, refcount: number, references: number): never {
    const offset = cluster * this.#clusterSize;
    const reason = `the cluster at ${hex(offset)} is referred to ${references} times, but its refcount is ${refcount}; see tsimgfs check`;
    throw new CorruptionError(this.#context.storage.path, reason, { offset });
  }

  #throwTooNarrow(cluster: number, references: number): never {
    const offset = cluster * this.#clusterSize;
    const reason = `the cluster at ${hex(offset)} would be referred to ${references} times, but refcounts of ${this.#bits} bits count to ${this.#max} only`;
    throw new TsimgfsError("EINVAL", this.#context.storage.path, reason, { offset });
  }
}
