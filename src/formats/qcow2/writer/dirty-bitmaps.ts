/**
 * The enabled persistent bitmaps of an image while it is written to: bits in memory that all threads share.
 * What a write is about to change is marked before; nothing of it is stored until the end.
 */

import { UnsupportedError } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import type { DirtyBitmaps } from "../../writer.ts";
import { bitmapBytes, loadBits } from "../bitmap-bits.ts";
import { type BitmapEntry, isTracked, readBitmapEntries } from "../bitmap-directory.ts";
import type { Qcow2Layout } from "../layout.ts";
import { bitRange } from "./subclusters.ts";

/** Our limit on the memory of all bitmaps of an image, bytes: one of 512-byte granularity for 2 TiB. */
export const BITMAP_MEMORY_MAX = 512 * 1024 * 1024;
/** Room for disks that grow, bytes of all bitmaps: 32 TiB at 64 KiB for one. What is not used costs nothing. */
const CAPACITY = 64 * 1024 * 1024;
const WORD_BITS = 32;

/** One bitmap as threads share it: plain data for structured clone. */
export interface SharedBitmap {
  readonly name: string;
  /** Host offset of its entry in the directory. */
  readonly at: number;
  readonly granularityBits: number;
  /** A bit for each 1 << granularityBits bytes; those of a byte from the lowest on. */
  readonly bits: SharedArrayBuffer;
}

/**
 * Load the bitmaps that writes are noted in.
 *
 * @throws {UnsupportedError} they would need too much memory
 * @throws {FormatError} one is damaged
 */
export function loadTrackedBitmaps(layout: Qcow2Layout, storage: Storage): SharedBitmap[] {
  const { bitmaps } = layout.extensions;
  if (bitmaps === undefined) return [];
  const entries = readBitmapEntries(bitmaps, storage, layout.clusterSize).filter(isTracked);
  const { virtualSize } = layout;
  let total = 0;
  for (const { granularityBits } of entries) total += bitmapBytes(virtualSize, granularityBits);
  if (total > BITMAP_MEMORY_MAX) {
    const reason = `keeping its bitmaps up takes ${total} bytes of memory, the limit is ${BITMAP_MEMORY_MAX}; remove or disable some (tsimgfs bitmap), or read the image with -r`;
    throw new UnsupportedError(storage.path, reason);
  }
  const capacity = Math.floor(CAPACITY / Math.max(1, entries.length));
  return entries.map((entry) => loadShared(entry, layout, storage, capacity));
}

function loadShared(
  entry: BitmapEntry,
  layout: Qcow2Layout,
  storage: Storage,
  capacity: number,
): SharedBitmap {
  const { at, name, granularityBits } = entry;
  const bytes = Math.max(capacity, bitmapBytes(layout.virtualSize, granularityBits));
  const bits = new SharedArrayBuffer(Math.ceil(bytes / 4) * 4);
  loadBits(entry, storage, layout, new Uint8Array(bits));
  return { at, name, granularityBits, bits };
}

/** The bitmaps as one thread marks them. */
export class SharedDirtyBitmaps implements DirtyBitmaps {
  readonly #bitmaps: readonly { readonly granularity: number; readonly words: Int32Array }[];

  constructor(bitmaps: readonly SharedBitmap[]) {
    this.#bitmaps = bitmaps.map(({ granularityBits, bits }) => ({
      granularity: 2 ** granularityBits,
      words: new Int32Array(bits),
    }));
  }

  mark(guestOffset: number, length: number): void {
    if (length <= 0) return;
    for (let index = 0; index < this.#bitmaps.length; index++) {
      const bitmap = this.#bitmaps[index];
      if (bitmap === undefined) return;
      const first = Math.floor(guestOffset / bitmap.granularity);
      const last = Math.floor((guestOffset + length - 1) / bitmap.granularity);
      markBits(bitmap.words, first, last);
    }
  }
}

/** Set the bits from `first` to `last`. */
export function markBits(words: Int32Array, first: number, last: number): void {
  for (let bit = first; bit <= last; ) {
    const word = Math.floor(bit / WORD_BITS);
    const from = bit % WORD_BITS;
    const to = Math.min(WORD_BITS - 1, from + last - bit);
    const mask = bitRange(from, to + 1) | 0;
    // Most writes come to what is marked already: reading does not take the line from other threads.
    if ((Atomics.load(words, word) & mask) !== mask) Atomics.or(words, word, mask);
    bit += to - from + 1;
  }
}
