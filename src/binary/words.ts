/** 64-bit values as two 32-bit halves, so that hot code needs no BigInt. */

export const TWO_TO_32 = 0x1_0000_0000;

/** The highest upper half of a safe integer: 2^53 - 1 has 21 bits above the lower 32. */
export const SAFE_HI_MAX = 0x1f_ffff;

/** A 32-bit word with its bytes in the other order, unsigned. */
export function swap32(word: number): number {
  return ((word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24)) >>> 0;
}

/** `hi * 2^32 + lo`; exact up to 2^53 - 1 and for any value whose low bits are zero. Halves unsigned. */
export function joinHalves(hi: number, lo: number): number {
  return hi * TWO_TO_32 + lo;
}
