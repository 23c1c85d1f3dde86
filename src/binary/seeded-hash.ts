/**
 * Hashes of numbers that images choose. Whoever does not know the seed cannot tell which numbers have the same
 * one, so that no image makes a hash table slow. Source: the finalizer of MurmurHash3, 32 bits.
 */

import { TWO_TO_32 } from "./words.ts";

/** A seed that nobody foresees, 32 bits. */
export function newHashSeed(): number {
  return Math.floor(Math.random() * TWO_TO_32);
}

/**
 * The hash of a number: 32 bits, signed, each of which depends on all of the number and the seed.
 *
 * @param value a safe integer, not negative
 */
export function hashOf(value: number, seed: number): number {
  return mix(mix(Math.floor(value / TWO_TO_32) ^ seed) ^ value);
}

function mix(word: number): number {
  let mixed = Math.imul(word ^ (word >>> 16), 0x85eb_ca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2_ae35);
  return mixed ^ (mixed >>> 16);
}
