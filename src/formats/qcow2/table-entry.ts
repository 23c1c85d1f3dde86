/** Entries of L1 and L2 tables as 32-bit halves. Source: qcow2 specification, "Cluster mapping". */

import { joinHalves, SAFE_HI_MAX } from "../../binary/words.ts";

/** Bits 9 to 55 of L1 and L2 entries: a host offset. */
const OFFSET_MASK_HI = 0x00ff_ffff;
const OFFSET_MASK_LO = 0xffff_fe00;

/** Bit 62 of an L2 entry: a compressed cluster. */
export const L2E_COMPRESSED_HI = 0x4000_0000;
/** Bit 63 of L1 and L2 entries: the refcount is exactly 1. */
export const COPIED_HI = 0x8000_0000;
/** Bit 0 of a standard L2 entry: reads as zeros. */
export const L2E_ZERO_LO = 1;

/** Bits 32 to 61 of a compressed cluster descriptor. */
const DESCRIPTOR_MASK_HI = 0x3fff_ffff;

const SECTOR_SIZE = 512;

/**
 * Host offset of a table or standard cluster, bytes; Infinity if no Number holds it exactly, which
 * is past the end of every file.
 */
export function entryHostOffset(hi: number, lo: number): number {
  const high = hi & OFFSET_MASK_HI;
  if (high > SAFE_HI_MAX) return Number.POSITIVE_INFINITY;
  return joinHalves(high, (lo & OFFSET_MASK_LO) >>> 0);
}

/**
 * The bit where the sector count of compressed cluster descriptors starts: 61 for 512-byte clusters
 * to 49 for 2 MiB. Source: "Compressed Clusters Descriptor", x = 62 - (cluster_bits - 8).
 */
export function sectorCountShift(clusterBits: number): number {
  return 62 - (clusterBits - 8);
}

/** Host offset of a compressed stream, bytes, not aligned; Infinity as above. */
export function compressedHostOffset(hi: number, lo: number, shift: number): number {
  // Host offsets have at most 56 bits, whatever the descriptor has room for.
  const high = hi & (2 ** (Math.min(shift, 56) - 32) - 1);
  if (high > SAFE_HI_MAX) return Number.POSITIVE_INFINITY;
  return joinHalves(high, lo);
}

/** An upper bound of the length of a compressed stream that starts at `hostOffset`, bytes. */
export function compressedLength(hi: number, shift: number, hostOffset: number): number {
  const additionalSectors = (hi & DESCRIPTOR_MASK_HI) >>> (shift - 32);
  return (additionalSectors + 1) * SECTOR_SIZE - (hostOffset % SECTOR_SIZE);
}
