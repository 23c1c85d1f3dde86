/**
 * What the bytes of a qcow2 image are for: a cluster is used if its refcount is not 0. Refcounts count
 * everything: metadata, snapshots and bitmaps too. Source: qcow2 specification, "Host cluster management".
 */

import { joinHalves, SAFE_HI_MAX } from "../../binary/words.ts";
import { CorruptionError, hex } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { AllocationCounter, type FileAllocation } from "../allocation.ts";
import { DataRuns } from "../data-runs.ts";
import type { Geometry } from "./header.ts";

/** Bits 9 to 31 of an entry of the refcount table. */
const OFFSET_LO = 0xffff_fe00;
const ENTRY_SIZE = 8;

/** Blocks are read in pieces of this many bytes, or whole clusters where those are smaller. */
const PIECE_MAX = 65536;

/** Where the refcount table is: of an image that is written to, now. */
export interface RefcountTablePlace {
  /** Host offset, bytes. */
  readonly offset: number;
  readonly clusters: number;
}

/**
 * Others may write to the image meanwhile: what they allocate and free may be counted as either.
 *
 * @throws {CorruptionError} the refcount table cannot be right
 * @throws {StorageError}
 */
export function countQcow2Allocation(
  geometry: Geometry,
  place: RefcountTablePlace,
  storage: Storage,
): FileAllocation {
  return new RefcountScan(geometry, place, storage).run();
}

class RefcountScan {
  readonly #storage: Storage;
  readonly #clusterSize: number;
  readonly #blockEntries: number;
  readonly #runs: DataRuns;
  readonly #piece: NativeBuffer;
  readonly #used: UsedEntries;
  /** Host offset of each block, bytes; 0: there is none. */
  readonly #blocks: Float64Array;
  readonly #counter: AllocationCounter;
  /** The first cluster of the used ones that are not counted yet; -1: there are none. */
  #usedFrom = -1;

  constructor(geometry: Geometry, place: RefcountTablePlace, storage: Storage) {
    const { clusterSize, refcountBits } = geometry;
    this.#storage = storage;
    this.#clusterSize = clusterSize;
    this.#blockEntries = (clusterSize * 8) / refcountBits;
    this.#piece = NativeBuffer.allocate(Math.min(PIECE_MAX, clusterSize));
    this.#used = new UsedEntries(this.#piece.bytes, refcountBits);
    this.#blocks = this.#readTable(place);
    // Looked at after the table: the blocks that it names were in the file by then.
    this.#runs = new DataRuns(storage, storage.currentLength());
    this.#counter = new AllocationCounter(storage);
  }

  run(): FileAllocation {
    for (let block = 0; block < this.#blocks.length; block++) {
      const offset = this.#blocks[block] ?? 0;
      if (offset === 0) this.#endUsed(block * this.#blockEntries);
      else this.#scanBlock(block, offset);
    }
    this.#endUsed(this.#blocks.length * this.#blockEntries);
    return this.#counter.finish();
  }

  #scanBlock(block: number, offset: number): void {
    const piece = this.#piece.length;
    const entries = (this.#blockEntries * piece) / this.#clusterSize;
    let first = block * this.#blockEntries;
    for (let done = 0; done < this.#clusterSize; done += piece) {
      const end = offset + done + piece;
      if (this.#runs.nextData(offset + done, end) === end) this.#endUsed(first);
      else {
        this.#storage.readAt(this.#piece, 0, piece, offset + done);
        this.#scanPiece(first, entries);
      }
      first += entries;
    }
  }

  #scanPiece(first: number, entries: number): void {
    for (let index = 0; index < entries; ) {
      if (this.#usedFrom < 0) {
        index = this.#used.next(index, entries);
        if (index < entries) this.#usedFrom = first + index;
      } else {
        index = this.#used.nextFree(index, entries);
        if (index < entries) this.#endUsed(first + index);
      }
    }
  }

  /** Nothing is used at `cluster`. */
  #endUsed(cluster: number): void {
    if (this.#usedFrom < 0) return;
    const end = cluster * this.#clusterSize;
    if (end > Number.MAX_SAFE_INTEGER) {
      const reason = `its refcounts say that cluster ${this.#usedFrom} is in use, which is behind the limit of 2^53 - 1`;
      throw new CorruptionError(this.#storage.path, reason);
    }
    this.#counter.addUsed(this.#usedFrom * this.#clusterSize, end);
    this.#usedFrom = -1;
  }

  #readTable({ offset: table, clusters }: RefcountTablePlace): Float64Array {
    const storage = this.#storage;
    const end = table + clusters * this.#clusterSize;
    const blocks = new Float64Array((clusters * this.#clusterSize) / ENTRY_SIZE);
    const runs = new DataRuns(storage, storage.currentLength());
    runs.forEachEntry(table, end, (hi, lo, at) => {
      const block = (at - table) / ENTRY_SIZE;
      const offset =
        hi > SAFE_HI_MAX ? Number.POSITIVE_INFINITY : joinHalves(hi, (lo & OFFSET_LO) >>> 0);
      if (offset % this.#clusterSize !== 0) {
        const what = Number.isFinite(offset)
          ? `offset ${hex(offset)} is not a multiple of the cluster size ${hex(this.#clusterSize)}`
          : "offset is above the limit of 2^53 - 1";
        this.#refuse(block, what, at);
      }
      blocks[block] = offset;
    });
    this.#checkBlocks(blocks, table);
    return blocks;
  }

  /** Each block is in the file, and is the only one there: the work is bounded by what the file has. */
  #checkBlocks(blocks: Float64Array, table: number): void {
    const fileSize = this.#storage.currentLength();
    if (table >= fileSize) {
      const reason = `refcount table offset ${hex(table)} is past the end of the file, ${hex(fileSize)}`;
      throw new CorruptionError(this.#storage.path, reason);
    }
    const sorted = blocks.filter((offset) => offset !== 0).sort();
    const last = sorted.at(-1) ?? 0;
    if (last >= fileSize) {
      const block = blocks.indexOf(last);
      this.#refuse(
        block,
        `offset ${hex(last)} is past the end of the file, ${hex(fileSize)}`,
        table,
      );
    }
    for (let index = 1; index < sorted.length; index++) {
      const offset = sorted[index] ?? 0;
      if (offset !== sorted[index - 1]) continue;
      const block = blocks.indexOf(offset);
      const other = blocks.indexOf(offset, block + 1);
      this.#refuse(other, `is at ${hex(offset)}, where refcount block ${block} is`, table);
    }
  }

  #refuse(block: number, reason: string, offset: number): never {
    throw new CorruptionError(this.#storage.path, `refcount block ${block} ${reason}`, { offset });
  }
}

/** Which refcounts of a piece of a block are not 0, for all widths. In what order bytes are does not matter. */
class UsedEntries {
  readonly #words: Uint8Array | Uint16Array | Uint32Array;
  /** Words of an entry: 2 for 64 bits. */
  readonly #perEntry: number;
  /** Entries of a word: more than 1 for less than 8 bits, packed from the lowest bit. */
  readonly #perWord: number;
  readonly #bits: number;

  /** @param bytes page aligned; they may change */
  constructor({ buffer, byteOffset, length }: Uint8Array, bits: number) {
    this.#bits = bits;
    this.#perEntry = bits === 64 ? 2 : 1;
    this.#perWord = bits < 8 ? 8 / bits : 1;
    if (bits <= 8) this.#words = new Uint8Array(buffer, byteOffset, length);
    else if (bits === 16) this.#words = new Uint16Array(buffer, byteOffset, length / 2);
    else this.#words = new Uint32Array(buffer, byteOffset, length / 4);
  }

  /** The first used entry from `start` on, or `end`. */
  next(start: number, end: number): number {
    let index = start;
    while (index < end && !this.#isUsed(index)) index++;
    return index;
  }

  /** The first entry from `start` on that is not used, or `end`. */
  nextFree(start: number, end: number): number {
    let index = start;
    while (index < end && this.#isUsed(index)) index++;
    return index;
  }

  #isUsed(index: number): boolean {
    const words = this.#words;
    if (this.#perEntry === 2) return words[index * 2] !== 0 || words[index * 2 + 1] !== 0;
    if (this.#perWord === 1) return words[index] !== 0;
    const word = words[Math.floor(index / this.#perWord)] ?? 0;
    const shift = (index % this.#perWord) * this.#bits;
    return ((word >>> shift) & (2 ** this.#bits - 1)) !== 0;
  }
}
