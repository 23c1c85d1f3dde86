/**
 * Refcounts on disk: looking for free clusters, raising, lowering, and the refcount table's growth. All
 * of it under the structure mutex; nothing is kept in memory, the host's page cache is near enough.
 * Source: qcow2 specification, "Host cluster management".
 */

import { StorageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { REFCOUNT_TABLE_SIZE_MAX } from "../header.ts";
import type { Qcow2Layout } from "../layout.ts";
import { readRefcount, writeRefcount } from "../refcount-entry.ts";
import type { HeaderWriter } from "./header-writer.ts";
import { putBlockOffset, RefcountBlockTable } from "./refcount-block-table.ts";
import type { SessionMarks } from "./session-marks.ts";
import { NUMBER, type SharedState } from "./shared-state.ts";

/** Refcount blocks are looked through in pieces of this many bytes. */
const SCAN_SIZE = 65536;

/** Host offsets of clusters have 56 bits in the format, and 53 in a Number. */
const HOST_OFFSET_MAX = 2 ** 53;

/** A run of host clusters. */
export interface ClusterRun {
  readonly first: number;
  readonly count: number;
}

export class RefcountStore {
  /** Where the refcount blocks are. */
  readonly table: RefcountBlockTable;
  /** Clusters that one refcount block counts. */
  readonly entriesPerBlock: number;
  readonly #bits: number;
  readonly #clusterSize: number;
  readonly #storage: WritableStorage;
  readonly #state: SharedState;
  readonly #headerWriter: HeaderWriter;
  readonly #marks: SessionMarks;
  readonly #entry = NativeBuffer.allocate(8);
  readonly #piece: NativeBuffer;

  constructor(
    layout: Qcow2Layout,
    storage: WritableStorage,
    state: SharedState,
    headerWriter: HeaderWriter,
    marks: SessionMarks,
  ) {
    this.table = new RefcountBlockTable(storage, state, layout.clusterSize);
    this.#bits = layout.refcountBits;
    this.#clusterSize = layout.clusterSize;
    this.entriesPerBlock = (layout.clusterSize * 8) / layout.refcountBits;
    this.#storage = storage;
    this.#state = state;
    this.#headerWriter = headerWriter;
    this.#marks = marks;
    this.#piece = NativeBuffer.allocate(Math.min(SCAN_SIZE, layout.clusterSize));
  }

  /**
   * Find clusters whose refcount is 0, the lowest first. Where there is no refcount block, or none yet,
   * all are free.
   *
   * @param from first cluster to look at
   * @param wanted clusters
   * @param runsMax runs of adjacent clusters; none reaches past a refcount block
   * @returns none: the refcount table counts no more clusters, or the file can have no more
   */
  findFree(from: number, wanted: number, runsMax: number): ClusterRun[] {
    const runs: ClusterRun[] = [];
    const end = this.#clusterLimit();
    let left = wanted;
    let cluster = from;
    while (left > 0 && runs.length < runsMax && cluster < end) {
      const block = Math.floor(cluster / this.entriesPerBlock);
      // Whoever needs more than the table counts first makes a larger one.
      if (block >= this.table.entries) break;
      const blockEnd = Math.min((block + 1) * this.entriesPerBlock, end);
      const offset = this.table.blockOffset(block);
      if (offset === 0) {
        const count = Math.min(left, blockEnd - cluster);
        runs.push({ first: cluster, count });
        left -= count;
        cluster += count;
        continue;
      }
      const first = this.#seek(cluster, blockEnd, offset, true);
      if (first < blockEnd) {
        const used = this.#seek(first, Math.min(blockEnd, first + left), offset, false);
        runs.push({ first, count: used - first });
        left -= used - first;
        cluster = used;
      } else cluster = blockEnd;
    }
    return runs;
  }

  /** The first cluster from `from` on whose refcount is 0 (or is not), or `end`; within one block. */
  #seek(from: number, end: number, blockOffset: number, free: boolean): number {
    const bits = this.#bits;
    const blockStart = Math.floor(from / this.entriesPerBlock) * this.entriesPerBlock;
    const perPiece = (this.#piece.length * 8) / bits;
    let cluster = from;
    while (cluster < end) {
      const inBlock = cluster - blockStart;
      const pieceStart = inBlock - (inBlock % perPiece);
      const bytes = (pieceStart * bits) / 8;
      this.#storage.readAt(this.#piece, 0, this.#piece.length, blockOffset + bytes);
      const pieceEnd = Math.min(end, blockStart + pieceStart + perPiece);
      for (; cluster < pieceEnd; cluster++) {
        const value = readRefcount(this.#piece.view, cluster - blockStart - pieceStart, bits);
        if ((value === 0) === free) return cluster;
      }
    }
    return end;
  }

  /** The refcount of one cluster. */
  read(cluster: number): number {
    const block = Math.floor(cluster / this.entriesPerBlock);
    const offset = this.table.blockOffset(block);
    if (offset === 0) return 0;
    const index = cluster % this.entriesPerBlock;
    const at = Math.floor((index * this.#bits) / 8);
    this.#storage.readAt(this.#entry, 0, Math.max(1, this.#bits / 8), offset + at);
    return readRefcount(
      this.#entry.view,
      this.#bits < 8 ? index % (8 / this.#bits) : 0,
      this.#bits,
    );
  }

  /**
   * Change the refcounts of a run of clusters whose blocks exist.
   *
   * @param change gets a cluster and its refcount, and returns the new one
   */
  change(run: ClusterRun, change: (cluster: number, refcount: number) => number): void {
    const bits = this.#bits;
    const perPiece = (this.#piece.length * 8) / bits;
    const end = run.first + run.count;
    let cluster = run.first;
    while (cluster < end) {
      const block = Math.floor(cluster / this.entriesPerBlock);
      const blockOffset = this.table.blockOffset(block);
      const inBlock = cluster - block * this.entriesPerBlock;
      const pieceStart = inBlock - (inBlock % perPiece);
      const pieceEnd = Math.min(
        end,
        block * this.entriesPerBlock + Math.min(pieceStart + perPiece, this.entriesPerBlock),
      );
      if (blockOffset === 0) {
        // Reads as 0 throughout; only the caller knows what that means.
        for (; cluster < pieceEnd; cluster++) change(cluster, 0);
        continue;
      }
      const place = blockOffset + (pieceStart * bits) / 8;
      const firstByte = Math.floor(((inBlock - pieceStart) * bits) / 8);
      const lastIndex = pieceEnd - block * this.entriesPerBlock - pieceStart;
      const bytes = Math.ceil((lastIndex * bits) / 8) - firstByte;
      this.#storage.readAt(this.#piece, firstByte, bytes, place + firstByte);
      for (; cluster < pieceEnd; cluster++) {
        const index = cluster - block * this.entriesPerBlock - pieceStart;
        const refcount = readRefcount(this.#piece.view, index, bits);
        writeRefcount(this.#piece.view, index, bits, change(cluster, refcount));
      }
      this.#storage.writeAt(this.#piece, firstByte, bytes, place + firstByte);
    }
  }

  /** Write a new refcount block at cluster `at`, which counts a run of clusters once. */
  writeNewBlock(at: number, ones: ClusterRun): void {
    const block = NativeBuffer.allocate(this.#clusterSize);
    for (let index = 0; index < ones.count; index++) {
      const entry = (ones.first + index) % this.entriesPerBlock;
      writeRefcount(block.view, entry, this.#bits, 1);
    }
    this.#storage.writeAt(block, 0, this.#clusterSize, at * this.#clusterSize);
  }

  /**
   * Let the refcount table refer to no block any more that counts nothing, or only itself.
   *
   * @param everywhere else only from the end of the table on, up to the first block that counts something
   * @returns the clusters of these blocks; some may be counted by another one, until the table is durable
   */
  unlinkEmptyBlocks(everywhere: boolean): number[] {
    const clusters: number[] = [];
    let block = this.table.linkedBlock(this.table.entries - 1, -1);
    for (; block > 0; block = this.table.linkedBlock(block - 1, -1)) {
      const offset = this.table.blockOffset(block);
      if (this.#isEmpty(block, offset)) {
        this.table.link(block, 0);
        clusters.push(offset / this.#clusterSize);
      } else if (!everywhere) break;
    }
    return clusters;
  }

  /** Whether a block counts nothing, or its own cluster once. */
  #isEmpty(block: number, offset: number): boolean {
    const first = block * this.entriesPerBlock;
    const end = first + this.entriesPerBlock;
    const own = offset / this.#clusterSize;
    const used = this.#seek(first, end, offset, false);
    if (used === end) return true;
    return used === own && this.#seek(own + 1, end, offset, false) === end && this.read(own) === 1;
  }

  /**
   * Make a larger refcount table, in a new area behind all that the old one counts, with the blocks that
   * count the area itself; when all that is durable, let the header refer to it, which is not durable yet.
   *
   * @returns the clusters of the new table, of its blocks, and of the old table, which are still counted
   * @throws {StorageError} ENOSPC: the block device is full; EFBIG: the table would exceed QEMU's limit
   */
  growTable(): { table: ClusterRun; blocks: ClusterRun; oldTable: ClusterRun } {
    const clusterSize = this.#clusterSize;
    const oldEntries = this.table.entries;
    const oldTable = {
      first: this.#state.get(NUMBER.refcountTableOffset) / clusterSize,
      count: this.#state.get(NUMBER.refcountTableClusters),
    };
    const first = oldEntries * this.entriesPerBlock;
    const tableClusters = Math.min(oldTable.count * 2, REFCOUNT_TABLE_SIZE_MAX / clusterSize);
    let blocks = 1;
    while (blocks * this.entriesPerBlock < tableClusters + blocks) blocks++;
    const end = first + tableClusters + blocks;
    const fits = oldEntries + blocks <= (tableClusters * clusterSize) / 8;
    if (tableClusters <= oldTable.count || !fits) {
      throw new StorageError("EFBIG", this.#storage.path, "the refcount table is full");
    }
    this.#extendTo(end);
    const table = NativeBuffer.allocate(tableClusters * clusterSize);
    const oldOffset = oldTable.first * clusterSize;
    this.#storage.readAt(table, 0, oldTable.count * clusterSize, oldOffset);
    for (let index = 0; index < blocks; index++) {
      const cluster = first + tableClusters + index;
      putBlockOffset(table.view, (oldEntries + index) * 8, cluster * clusterSize);
      const start = first + index * this.entriesPerBlock;
      const count = Math.min(end - start, this.entriesPerBlock);
      this.writeNewBlock(cluster, { first: start, count });
    }
    this.#storage.writeAt(table, 0, table.length, first * clusterSize);
    this.#marks.sync();
    this.#headerWriter.setRefcountTable(first * clusterSize, tableClusters);
    return {
      table: { first, count: tableClusters },
      blocks: { first: first + tableClusters, count: blocks },
      oldTable,
    };
  }

  /**
   * Allocate adjacent clusters behind all that is in use, with refcount blocks of their own if the last
   * one does not count them all; durably.
   *
   * @param requireUnused throws if something is in a run whose refcounts are 0; called before anything is written
   * @returns the first one, and the clusters of new blocks; undefined: the refcount table is too small
   */
  allocateArea(
    clusters: number,
    requireUnused: (run: ClusterRun) => void,
  ): { first: number; blocks: ClusterRun } | undefined {
    const clusterSize = this.#clusterSize;
    const next = this.lastUsed() + 1;
    let block = Math.floor(next / this.entriesPerBlock);
    if (
      this.table.blockOffset(block) !== 0 &&
      next + clusters <= (block + 1) * this.entriesPerBlock
    ) {
      requireUnused({ first: next, count: clusters });
      this.#extendTo(next + clusters);
      this.#storage.zeroAt(next * clusterSize, clusters * clusterSize, "release");
      this.change({ first: next, count: clusters }, () => 1);
      this.#marks.sync();
      return { first: next, blocks: { first: next, count: 0 } };
    }
    let blocks = 1;
    while (blocks * this.entriesPerBlock < clusters + blocks) blocks++;
    // Blocks that count nothing are in the way all the same: they would be leaked.
    for (let other = block; other < Math.min(block + blocks, this.table.entries); other++) {
      if (this.table.blockOffset(other) !== 0) block = other + 1;
    }
    if (block + blocks > this.table.entries) return undefined;
    const first = block * this.entriesPerBlock;
    const end = first + clusters + blocks;
    requireUnused({ first, count: end - first });
    this.#extendTo(end);
    this.#storage.zeroAt(first * clusterSize, clusters * clusterSize, "release");
    for (let index = 0; index < blocks; index++) {
      const start = first + index * this.entriesPerBlock;
      const count = Math.min(end - start, this.entriesPerBlock);
      this.writeNewBlock(first + clusters + index, { first: start, count });
    }
    this.#marks.sync();
    for (let index = 0; index < blocks; index++) {
      this.table.link(block + index, first + clusters + index);
    }
    this.#marks.sync();
    return { first, blocks: { first: first + clusters, count: blocks } };
  }

  /** The last cluster whose refcount is not 0, or -1. */
  lastUsed(): number {
    let block = this.table.linkedBlock(this.table.entries - 1, -1);
    for (; block >= 0; block = this.table.linkedBlock(block - 1, -1)) {
      const offset = this.table.blockOffset(block);
      const first = block * this.entriesPerBlock;
      let last = -1;
      let cluster = first;
      const end = first + this.entriesPerBlock;
      while (cluster < end) {
        const used = this.#seek(cluster, end, offset, false);
        if (used === end) break;
        cluster = this.#seek(used, end, offset, true);
        last = cluster - 1;
      }
      if (last >= 0) return last;
    }
    return -1;
  }

  /**
   * Make the file long enough for a number of clusters.
   *
   * @throws {StorageError} ENOSPC: it cannot be
   */
  #extendTo(clusters: number): void {
    if (clusters > this.#clusterLimit()) {
      const { path, resizable, length } = this.#storage;
      const place = resizable ? "in this file" : `on this device of ${length} bytes`;
      throw new StorageError("ENOSPC", path, `no free clusters are left ${place}`);
    }
    const length = clusters * this.#clusterSize;
    if (this.#storage.resizable && this.#storage.currentLength() < length) {
      this.#storage.setLength(length);
    }
  }

  /** Clusters that the file can have. */
  #clusterLimit(): number {
    const bytes = this.#storage.resizable ? HOST_OFFSET_MAX : this.#storage.length;
    return Math.floor(bytes / this.#clusterSize);
  }
}
