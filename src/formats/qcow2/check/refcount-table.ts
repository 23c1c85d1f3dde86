/** The refcounts that an image has on disk: its refcount table, and blocks read as needed. */

import { joinHalves, SAFE_HI_MAX } from "../../../binary/words.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { DataRuns } from "../../data-runs.ts";
import { readRefcount } from "../refcount-entry.ts";
import type { CheckedImage } from "./check-layout.ts";
import type { Findings } from "./findings.ts";
import type { References } from "./references.ts";

/** Bits 0 to 8 of an entry of the refcount table. */
const RESERVED_LO = 0x1ff;
const ENTRY_SIZE = 8;

/** Blocks are cached in slices of this many bytes, or whole clusters where those are smaller. */
const SLICE_MAX = 4096;
/** Places for slices; a power of two. */
const SLICES = 256;

/** No refcount: its block cannot be read. */
export const UNREADABLE = -1;

/**
 * What is wrong with an entry of the refcount table. shared: something else lies over the block;
 * saturated: so it does, but a refcount cannot say more than 1, and QEMU does not see it.
 */
export const BLOCK_FAULT = {
  none: 0,
  reserved: 1,
  unaligned: 2,
  outside: 3,
  shared: 4,
  saturated: 5,
} as const;

export class RefcountTable {
  readonly image: CheckedImage;
  /** Entries of the table. */
  readonly blocks: number;
  /** Refcounts in a block. */
  readonly blockEntries: number;
  /** Refcounts in a slice of a block. */
  readonly sliceEntries: number;
  /** What is wrong with each entry, once `countBlocks` has looked. */
  readonly faults: Uint8Array;
  readonly #table: NativeBuffer;
  readonly #sliceSize: number;
  #runs: DataRuns;
  readonly #cache: NativeBuffer;
  /** The host offset of the slice in each place, or -1. */
  readonly #cached = new Float64Array(SLICES).fill(-1);

  constructor(image: CheckedImage) {
    const { storage, layout } = image;
    const { header, clusterSize, refcountBits } = layout;
    const size = header.refcount_table_clusters * clusterSize;
    this.image = image;
    this.blocks = size / ENTRY_SIZE;
    this.blockEntries = (clusterSize * 8) / refcountBits;
    this.#sliceSize = Math.min(SLICE_MAX, clusterSize);
    this.sliceEntries = (this.#sliceSize * 8) / refcountBits;
    this.#runs = new DataRuns(storage, image.length);
    this.faults = new Uint8Array(this.blocks);
    this.#table = NativeBuffer.allocate(size);
    this.#cache = NativeBuffer.allocate(SLICES * this.#sliceSize);
    storage.readAt(this.#table, 0, size, header.refcount_table_offset);
  }

  /** Host offset of a block, bytes; 0: there is none; Infinity: past the end of every file. */
  blockOffset(block: number): number {
    if (block >= this.blocks) return 0;
    const hi = this.#table.view.getUint32(block * ENTRY_SIZE);
    const lo = this.#table.view.getUint32(block * ENTRY_SIZE + 4) & ~RESERVED_LO;
    return hi > SAFE_HI_MAX ? Number.POSITIVE_INFINITY : joinHalves(hi, lo >>> 0);
  }

  /** Whether a block's refcounts can be read: as QEMU, also where its entry is damaged. */
  isReadable(block: number): boolean {
    if (block >= this.blocks) return true;
    const hi = this.#table.view.getUint32(block * ENTRY_SIZE);
    return !this.#isUnaligned(block) && hi < 0x8000_0000;
  }

  /** Check the table, and add the blocks to the references. */
  countBlocks(references: References, findings: Findings): void {
    const { clusterSize } = this.image.layout;
    const max = 2 ** this.image.layout.refcountBits - 1;
    for (let block = 0; block < this.blocks; block++) {
      const offset = this.blockOffset(block);
      const lo = this.#table.view.getUint32(block * ENTRY_SIZE + 4);
      if (offset === 0 && lo === 0) continue;
      const cluster = Math.floor(offset / clusterSize);
      if ((lo & RESERVED_LO) !== 0) {
        this.#fault(block, BLOCK_FAULT.reserved, "has reserved bits set", findings);
      } else if (this.#isUnaligned(block)) {
        this.#fault(block, BLOCK_FAULT.unaligned, "is not cluster aligned", findings);
      } else if (cluster >= references.counts.clusters) {
        this.#fault(block, BLOCK_FAULT.outside, "is past the end of the file", findings);
      } else {
        references.addRegion(offset, clusterSize, 1, "a refcount block");
        const count = references.counts.get(cluster);
        if (Math.min(count, max) !== 1) {
          this.#fault(block, BLOCK_FAULT.shared, `has ${count} references`, findings);
        } else if (count !== 1) {
          this.faults[block] = BLOCK_FAULT.saturated;
        }
      }
    }
  }

  /** The refcount of a cluster, or UNREADABLE. */
  get(cluster: number): number {
    const block = Math.floor(cluster / this.blockEntries);
    if (!this.isReadable(block)) return UNREADABLE;
    const inSlice = cluster % this.sliceEntries;
    const first = this.#load(block, cluster - inSlice);
    if (first < 0) return 0;
    return readRefcount(this.#cache.view, first + inSlice, this.image.layout.refcountBits);
  }

  /**
   * The refcounts of the clusters from `start` on, up to the end of the slice at the most.
   *
   * @param out at least `sliceEntries`
   * @returns how many there are, not more than `limit`; 0: they are all 0, up to the end of the slice.
   *   Their block is readable
   */
  readRun(start: number, limit: number, out: Float64Array): number {
    const inSlice = start % this.sliceEntries;
    const first = this.#load(Math.floor(start / this.blockEntries), start - inSlice);
    if (first < 0) return 0;
    const { view } = this.#cache;
    const { refcountBits } = this.image.layout;
    const count = Math.min(this.sliceEntries - inSlice, limit);
    for (let index = 0; index < count; index++) {
      out[index] = readRefcount(view, first + inSlice + index, refcountBits);
    }
    return count;
  }

  /** Visit the clusters below `end` whose refcount is not 0, as far as it is readable. */
  forEachUsed(end: number, visit: (cluster: number, refcount: number) => void): void {
    this.#forEachUsed(0, end, (block) => this.isReadable(block), visit);
  }

  /**
   * As `forEachUsed`, from `start` on as far as the table goes; only in blocks that are intact, of
   * which a file has no more than it has clusters.
   */
  forEachUsedFrom(start: number, visit: (cluster: number, refcount: number) => void): void {
    const isIntact = (block: number): boolean => this.faults[block] === BLOCK_FAULT.none;
    this.#forEachUsed(start, this.coveredClusters(), isIntact, visit);
  }

  #forEachUsed(
    start: number,
    end: number,
    isWanted: (block: number) => boolean,
    visit: (cluster: number, refcount: number) => void,
  ): void {
    const run = new Float64Array(this.sliceEntries);
    for (let first = start; first < end; ) {
      const block = Math.floor(first / this.blockEntries);
      if (this.blockOffset(block) === 0 || !isWanted(block)) {
        first = (block + 1) * this.blockEntries;
        continue;
      }
      const sliceEnd = (Math.floor(first / this.sliceEntries) + 1) * this.sliceEntries;
      const count = this.readRun(first, end - first, run);
      for (let index = 0; index < count; index++) {
        const refcount = run[index] ?? 0;
        if (refcount !== 0) visit(first + index, refcount);
      }
      first = sliceEnd;
    }
  }

  /** Clusters that the table has room for. */
  coveredClusters(): number {
    return this.blocks * this.blockEntries;
  }

  /** Forget what was read: blocks have changed. */
  invalidate(): void {
    this.#cached.fill(-1);
    this.#runs = new DataRuns(this.image.storage, this.image.length);
  }

  #isUnaligned(block: number): boolean {
    const lo = this.#table.view.getUint32(block * ENTRY_SIZE + 4) & ~RESERVED_LO;
    return (lo & (this.image.layout.clusterSize - 1)) !== 0;
  }

  #fault(block: number, fault: number, reason: string, findings: Findings): void {
    this.faults[block] = fault;
    findings.add("structure", 1, () => `refcount block ${block} ${reason}`);
  }

  /**
   * Have the slice of a block in the cache that starts with the refcount of cluster `start`.
   *
   * @returns the index of that refcount in the cache; -1: the whole slice is zeros
   */
  #load(block: number, start: number): number {
    const blockOffset = this.blockOffset(block);
    if (blockOffset === 0 || blockOffset >= this.image.length) return -1;
    const inBlock = start % this.blockEntries;
    const offset = blockOffset + (inBlock / this.sliceEntries) * this.#sliceSize;
    const place = (offset / this.#sliceSize) % SLICES;
    if (this.#cached[place] !== offset) {
      const end = offset + this.#sliceSize;
      if (this.#runs.nextData(offset, end) === end) return -1;
      this.image.storage.readAt(this.#cache, place * this.#sliceSize, this.#sliceSize, offset);
      this.#cached[place] = offset;
    }
    return place * this.sliceEntries;
  }
}
