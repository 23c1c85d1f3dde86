/**
 * What the threads that write to a qcow2 image share: one block of memory.
 *
 * Words, by Atomics, besides those of all formats:
 *     PLACES_BEGUN     1: as BEGUN, but the autoclear bit of bitmaps stays: they know nothing of places
 *     DIRTY            1: the dirty bit was set by us, and is cleared at the end
 *     SHRUNK           1: the disk has become smaller: at the end, so does the file
 *     FREES_HEAD, FREES_TAIL, FREES_DURABLE   counts of the queue of frees, modulo 2^32
 *
 * Doubles; the sizes and the reservation under the exclusive lock of the image, the refcount table and
 * the hint under the structure mutex:
 *     the size, the L1 table, the refcount table, the hint, counts of the reservation
 *     RESERVED         extents of reserved clusters: first cluster, count
 *     FREES            a ring of extents that lose one reference each: first cluster, count
 *
 * Bits, one for each L1 entry: in the range of its L2 table something was zeroed.
 */

import { FORMAT_WORD, SharedWords, WRITER_WORD } from "../../shared-words.ts";
import type { Header } from "../header.ts";

/** Extents that are reserved at once, at the most. */
export const RESERVED_MAX = 256;
/** Extents that wait to be freed, at the most. */
export const FREES_MAX = 16384;

export const WORD = {
  ...WRITER_WORD,
  placesBegun: FORMAT_WORD,
  dirty: FORMAT_WORD + 1,
  freesHead: FORMAT_WORD + 2,
  freesTail: FORMAT_WORD + 3,
  freesDurable: FORMAT_WORD + 4,
  shrunk: FORMAT_WORD + 5,
} as const;
const WORDS = 16;

export const NUMBER = {
  virtualSize: 0,
  l1Offset: 1,
  /** Entries of the L1 table in the file. */
  l1Size: 2,
  refcountTableOffset: 3,
  refcountTableClusters: 4,
  /** No cluster below this one is free. */
  freeHint: 5,
  /** Reserved extents. */
  reservedExtents: 6,
  /** Reserved clusters, in all extents. */
  reservedClusters: 7,
  /** Clusters that the last reservation had. */
  lastReservation: 8,
  /** Clusters that this session has taken from reservations. */
  taken: 9,
  /** Host offset where the next compressed stream goes, in a cluster that has others; 0: to a new one. */
  streamTail: 10,
} as const;
const NUMBERS = 16;

export class SharedState extends SharedWords {
  readonly reserved: Float64Array;
  readonly frees: Float64Array;
  readonly #zeroed: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    super(memory, { words: WORDS, numbers: NUMBERS });
    let at = this.numbers.byteOffset + this.numbers.byteLength;
    const doubles = (count: number): Float64Array => {
      const array = new Float64Array(memory, at, count);
      at += count * Float64Array.BYTES_PER_ELEMENT;
      return array;
    };
    this.reserved = doubles(RESERVED_MAX * 2);
    this.frees = doubles(FREES_MAX * 2);
    this.#zeroed = new Int32Array(memory, at);
  }

  /** Something was zeroed in the range of an L2 table: perhaps it says nothing else any more. */
  noteZeroed(l1Index: number): void {
    const word = Math.floor(l1Index / 32);
    if (word < this.#zeroed.length) Atomics.or(this.#zeroed, word, 1 << (l1Index % 32));
  }

  /** The indexes that `noteZeroed` was told. */
  *zeroedTables(): Generator<number> {
    for (let word = 0; word < this.#zeroed.length; word++) {
      const bits = this.#zeroed[word] ?? 0;
      for (let bit = 0; bits !== 0 && bit < 32; bit++) {
        if (((bits >>> bit) & 1) !== 0) yield word * 32 + bit;
      }
    }
  }
}

/** Memory for the state of one image, filled from its header. */
export function createSharedState(header: Header, virtualSize: number): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(
    WORDS * Int32Array.BYTES_PER_ELEMENT +
      (NUMBERS + RESERVED_MAX * 2 + FREES_MAX * 2) * Float64Array.BYTES_PER_ELEMENT +
      Math.ceil(header.l1_size / 32) * Int32Array.BYTES_PER_ELEMENT,
  );
  const state = new SharedState(memory);
  state.set(NUMBER.virtualSize, virtualSize);
  state.set(NUMBER.l1Offset, header.l1_table_offset);
  state.set(NUMBER.l1Size, header.l1_size);
  state.set(NUMBER.refcountTableOffset, header.refcount_table_offset);
  state.set(NUMBER.refcountTableClusters, header.refcount_table_clusters);
  return memory;
}
