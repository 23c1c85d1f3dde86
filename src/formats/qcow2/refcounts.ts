/** Reading reference counts. Source: qcow2 specification, "Host cluster management". */

import { joinHalves, SAFE_HI_MAX } from "../../binary/words.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { Qcow2Layout } from "./layout.ts";

/**
 * Our limit on the work of one count: refcounts looked at. A hostile table may name the same block a
 * million times; 2^26 are those of a 4 TiB image file with 64 KiB clusters.
 */
const REFCOUNTS_MAX = 2 ** 26;

/** Bytes of refcount table read at once. */
const TABLE_PIECE = 65536;

/**
 * Host clusters in use among the first `clusters`, counted until there are `enough` of them.
 *
 * @param block room for one cluster
 */
export function countReferencedClusters(
  layout: Qcow2Layout,
  storage: Storage,
  { clusters, enough }: { clusters: number; enough: number },
  block: NativeBuffer,
): number {
  const { refcountBits, clusterSize, header } = layout;
  const blockEntries = (clusterSize * 8) / refcountBits;
  const tableBytes = Math.min(
    header.refcount_table_clusters * clusterSize,
    Math.ceil(clusters / blockEntries) * 8,
  );
  const table = NativeBuffer.allocate(TABLE_PIECE);
  let count = 0;
  let looked = 0;
  for (let at = 0; at < tableBytes; at += 8) {
    if (at % TABLE_PIECE === 0) {
      const length = Math.min(TABLE_PIECE, tableBytes - at);
      storage.readAt(table, 0, length, header.refcount_table_offset + at);
    }
    const offset = refcountBlockOffset(table.view, at % TABLE_PIECE);
    if (offset === 0 || offset % clusterSize !== 0) continue;
    storage.readAt(block, 0, clusterSize, offset);
    const first = (at / 8) * blockEntries;
    const entries = Math.min(blockEntries, clusters - first);
    looked += entries;
    if (looked > REFCOUNTS_MAX) return count;
    for (let index = 0; index < entries; index++) {
      if (isReferenced(block.bytes, index, refcountBits)) count++;
    }
    if (count >= enough) return count;
  }
  return count;
}

/** Host offset of a refcount block, 0 if there is none or no Number holds it. */
function refcountBlockOffset(table: DataView, at: number): number {
  const hi = table.getUint32(at);
  const lo = table.getUint32(at + 4) & 0xffff_fe00;
  return hi > SAFE_HI_MAX ? 0 : joinHalves(hi, lo >>> 0);
}

/** Whether refcount `index` of a block is not 0. Widths below 8 bits are packed from the lowest bit. */
function isReferenced(block: Uint8Array, index: number, bits: number): boolean {
  if (bits < 8) {
    const byte = block[Math.floor((index * bits) / 8)] ?? 0;
    return ((byte >>> ((index * bits) % 8)) & (2 ** bits - 1)) !== 0;
  }
  const bytes = bits / 8;
  for (let at = index * bytes; at < (index + 1) * bytes; at++) {
    if (block[at] !== 0) return true;
  }
  return false;
}
