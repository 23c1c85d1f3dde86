/** The bits of a persistent dirty bitmap, as its table and clusters have them. Source: qcow2 specification, "Bitmaps". */

import { swap32, TWO_TO_32 } from "../../binary/words.ts";
import { FormatError, hex } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { BitmapEntry } from "./bitmap-directory.ts";
import { entryHostOffset } from "./table-entry.ts";

/** Bits of a table's entry that are 0; with an offset, bit 0 too. */
const RESERVED_HI = 0xff00_0000;
const RESERVED_LO = 0x0000_01fe;
/** Without an offset: all bits of the cluster are 1. */
const ALL_ONES_LO = 1;
/** Bytes of a table's entry. */
const ENTRY_SIZE = 8;
/** Tables are read in pieces of this many bytes. */
const PIECE_SIZE = 65536;

/** Bits that a disk needs. */
export function bitCount(virtualSize: number, granularityBits: number): number {
  return Math.ceil(virtualSize / 2 ** granularityBits);
}

/** Bytes that a disk's bits take. */
export function bitmapBytes(virtualSize: number, granularityBits: number): number {
  return Math.ceil(bitCount(virtualSize, granularityBits) / 8);
}

/** Entries that the table of a disk's bitmap has. */
export function tableEntriesFor(
  virtualSize: number,
  granularityBits: number,
  clusterSize: number,
): number {
  return Math.ceil(bitmapBytes(virtualSize, granularityBits) / clusterSize);
}

/** Host offsets of the clusters that a table refers to; 0, or 1 for all ones, where there is none. */
export function* readTable(
  { tableOffset, tableEntries, name }: BitmapEntry,
  storage: Storage,
  clusterSize: number,
): Generator<number> {
  const piece = NativeBuffer.allocate(PIECE_SIZE);
  const words = new Int32Array(piece.bytes.buffer, piece.bytes.byteOffset, PIECE_SIZE / 4);
  const length = tableEntries * ENTRY_SIZE;
  for (let at = 0; at < length; at += PIECE_SIZE) {
    const count = Math.min(PIECE_SIZE, length - at);
    storage.readAt(piece, 0, count, tableOffset + at);
    for (let word = 0; word < count / 4; word += 2) {
      const hi = swap32(words[word] ?? 0);
      const lo = swap32(words[word + 1] ?? 0);
      const offset = entryHostOffset(hi, lo);
      const isDamaged = (hi & RESERVED_HI) !== 0 || (lo & RESERVED_LO) !== 0;
      if (isDamaged || (offset !== 0 && (offset % clusterSize !== 0 || (lo & ALL_ONES_LO) !== 0))) {
        const where = { offset: tableOffset + at + word * 4 };
        const value = hex(BigInt(hi >>> 0) * BigInt(TWO_TO_32) + BigInt(lo >>> 0));
        const reason = `bitmap "${name}": the table entry ${value} at ${hex(where.offset)} is damaged`;
        throw new FormatError(storage.path, reason, where);
      }
      yield offset === 0 ? lo & ALL_ONES_LO : offset;
    }
  }
}

/**
 * Read the bits of a bitmap.
 *
 * @param target of at least as many bytes as the disk's bits take, and zeros; bits past the last one stay 0
 * @throws {FormatError} its table is damaged, or not for this disk
 */
export function loadBits(
  entry: BitmapEntry,
  storage: Storage,
  { virtualSize, clusterSize }: { readonly virtualSize: number; readonly clusterSize: number },
  target: Uint8Array,
): void {
  const bytes = bitmapBytes(virtualSize, entry.granularityBits);
  const wanted = Math.ceil(bytes / clusterSize);
  if (entry.tableEntries !== wanted) {
    const reason = `bitmap "${entry.name}": its table has ${entry.tableEntries} entries, the disk needs ${wanted}`;
    throw new FormatError(storage.path, reason, { offset: entry.at });
  }
  const cluster = NativeBuffer.allocate(clusterSize);
  let done = 0;
  for (const offset of readTable(entry, storage, clusterSize)) {
    const count = Math.min(clusterSize, bytes - done);
    if (offset === ALL_ONES_LO) target.fill(0xff, done, done + count);
    else if (offset !== 0) {
      storage.readAt(cluster, 0, count, offset);
      target.set(cluster.bytes.subarray(0, count), done);
    }
    done += count;
  }
  cutBits(target, bitCount(virtualSize, entry.granularityBits));
}

/** Clear all bits from the one at `count` on; other threads may set those before it. */
export function cutBits(bits: Uint8Array, count: number): void {
  const byte = Math.floor(count / 8);
  if (byte >= bits.length) return;
  Atomics.and(bits, byte, (1 << (count % 8)) - 1);
  bits.fill(0, byte + 1);
}
