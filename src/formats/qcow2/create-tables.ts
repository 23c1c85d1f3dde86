/**
 * The tables of a new image, written in large pieces. They need no allocator: what they list lies one
 * after the other (create-layout.ts), so that entry after entry is one step further.
 */

import { TWO_TO_32 } from "../../binary/words.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { CreationPieces } from "../raw/create.ts";
import type { CreateLayout } from "./create-layout.ts";
import { writeRefcount } from "./refcount-entry.ts";
import { COPIED_HI } from "./table-entry.ts";

/** Bytes that are written at once; a multiple of every entry. */
const PIECE_SIZE = 1024 * 1024;

/** A table whose entries name clusters one after the other. */
interface LinearTable {
  /** Bytes in the file. */
  readonly offset: number;
  readonly bytes: number;
  readonly entryBytes: number;
  /** Entries that are not zero: the first ones. */
  readonly entries: number;
  /** What the first entry refers to, bytes; each further one a cluster later. */
  readonly target: number;
  /** Upper half of the flags of each entry. */
  readonly flagsHi: number;
}

/**
 * Write everything but the header to a file that reads as zeros. All tables in full, zeros as well: QEMU
 * takes an image whose tables are mostly holes for one with preallocated clusters, and looks for holes
 * at each step of `map`.
 */
export function* writeTables(
  storage: WritableStorage,
  layout: CreateLayout,
  sizes: { clusterSize: number; refcountBits: number; l2EntryBytes: number },
): CreationPieces {
  const { clusterSize, refcountBits, l2EntryBytes } = sizes;
  const writeTable = (table: LinearTable): CreationPieces =>
    writeLinearTable(storage, table, clusterSize);
  yield* writeTable({
    offset: layout.refcountTableOffset,
    bytes: layout.refcountTableClusters * clusterSize,
    entryBytes: 8,
    entries: layout.refcountBlocks,
    target: layout.refcountBlocksOffset,
    flagsHi: 0,
  });
  yield* writeRefcountBlocks(storage, layout, clusterSize, refcountBits);
  yield* writeTable({
    offset: layout.l1Offset,
    bytes: layout.l1Entries * 8,
    entryBytes: 8,
    entries: layout.l2Tables,
    target: layout.l2Offset,
    flagsHi: COPIED_HI,
  });
  // The second word of an extended entry stays 0: no sub-cluster is allocated, none reads as zeros.
  yield* writeTable({
    offset: layout.l2Offset,
    bytes: layout.l2Tables * clusterSize,
    entryBytes: l2EntryBytes,
    entries: layout.mappedClusters,
    target: layout.dataOffset,
    flagsHi: COPIED_HI,
  });
}

function* writeLinearTable(
  storage: WritableStorage,
  { offset, bytes, entryBytes, entries, target, flagsHi }: LinearTable,
  clusterSize: number,
): CreationPieces {
  const piece = NativeBuffer.allocate(Math.min(bytes, PIECE_SIZE));
  for (let done = 0; done < bytes; done += PIECE_SIZE) {
    const length = Math.min(PIECE_SIZE, bytes - done);
    const first = done / entryBytes;
    const filled = Math.max(0, Math.min(entries - first, length / entryBytes));
    for (let index = 0; index < filled; index++) {
      const hostOffset = target + (first + index) * clusterSize;
      piece.view.setUint32(index * entryBytes, (hostOffset / TWO_TO_32) | flagsHi);
      piece.view.setUint32(index * entryBytes + 4, hostOffset % TWO_TO_32);
    }
    piece.bytes.fill(0, filled * entryBytes, length);
    storage.writeAt(piece, 0, length, offset + done);
    yield;
  }
}

/** Each cluster of the file has one owner. */
function* writeRefcountBlocks(
  storage: WritableStorage,
  layout: CreateLayout,
  clusterSize: number,
  refcountBits: number,
): CreationPieces {
  const bytes = layout.refcountBlocks * clusterSize;
  const piece = NativeBuffer.allocate(Math.min(bytes, PIECE_SIZE));
  const pieceEntries = (piece.length * 8) / refcountBits;
  fillWithOnes(piece, pieceEntries, refcountBits);
  for (let done = 0; done < bytes; done += PIECE_SIZE) {
    const entries = layout.clusters - (done * 8) / refcountBits;
    if (entries < pieceEntries) fillWithOnes(piece, Math.max(0, entries), refcountBits);
    storage.writeAt(
      piece,
      0,
      Math.min(PIECE_SIZE, bytes - done),
      layout.refcountBlocksOffset + done,
    );
    yield;
  }
}

/** The first `entries` refcounts are 1, the others 0. */
function fillWithOnes(piece: NativeBuffer, entries: number, refcountBits: number): void {
  // 64 refcounts of any width are whole bytes: they are written once, and then copied.
  const group = 64;
  const groupBytes = (group * refcountBits) / 8;
  for (let index = 0; index < group; index++) writeRefcount(piece.view, index, refcountBits, 1);
  const wholeBytes = Math.floor(entries / group) * groupBytes;
  for (let at = groupBytes; at < wholeBytes; at += groupBytes) {
    piece.bytes.copyWithin(at, 0, groupBytes);
  }
  piece.bytes.fill(0, wholeBytes);
  for (let index = Math.floor(entries / group) * group; index < entries; index++) {
    writeRefcount(piece.view, index, refcountBits, 1);
  }
}
