/** Entries of L1 and L2 tables: host offsets, little-endian. Source: QED specification, "Tables". */

import { joinHalves, SAFE_HI_MAX } from "../../binary/words.ts";

/** Nothing is here: of the L1 table, no L2 table. */
export const ENTRY_UNALLOCATED = 0;
/** Of L2 tables: the cluster reads as zeros, whatever a backing file has. Larger ones are host offsets. */
export const ENTRY_ZERO = 1;

/** A table entry; beyond 2^53 - 1, the next Number above, which is past the end of every file. */
export function entryAt(words: Int32Array, at: number): number {
  const lo = Atomics.load(words, at) >>> 0;
  const hi = Atomics.load(words, at + 1) >>> 0;
  return hi > SAFE_HI_MAX ? Number.MAX_SAFE_INTEGER + 1 : joinHalves(hi, lo);
}
