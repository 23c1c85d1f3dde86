/**
 * Keys spread over many stripes, all of which are needed to get them back: what is erased of a slot is
 * gone. Source: LUKS On-Disk Format Specification 1.2.3, "Anti-forensic splitter".
 */

import { lazyModules } from "../lazy-modules.ts";
import { type HashName, hashSize } from "./cipher-suite.ts";

/**
 * Spread a key.
 *
 * @returns `stripes` times as many bytes as the key has
 */
export function splitKey(key: Uint8Array, stripes: number, hash: HashName): Buffer {
  const size = key.length;
  const split = lazyModules.crypto.randomBytes(size * stripes);
  const sum = sumOfStripes(split, { size, stripes, hash });
  const last = split.subarray(size * (stripes - 1));
  for (let index = 0; index < size; index++) last[index] = (sum[index] ?? 0) ^ (key[index] ?? 0);
  sum.fill(0);
  return split;
}

/**
 * Get a key back.
 *
 * @param split at least `size * stripes` bytes
 */
export function mergeKey(
  split: Uint8Array,
  { size, stripes, hash }: { size: number; stripes: number; hash: HashName },
): Buffer {
  const key = sumOfStripes(split, { size, stripes, hash });
  addBytes(key, split, size * (stripes - 1));
  return key;
}

/** All stripes but the last one: added, and diffused after each. */
function sumOfStripes(
  split: Uint8Array,
  { size, stripes, hash }: { size: number; stripes: number; hash: HashName },
): Buffer {
  const sum = Buffer.alloc(size);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    addBytes(sum, split, stripe * size);
    diffuse(sum, hash);
  }
  return sum;
}

function addBytes(sum: Uint8Array, bytes: Uint8Array, start: number): void {
  for (let index = 0; index < sum.length; index++) {
    sum[index] = (sum[index] ?? 0) ^ (bytes[start + index] ?? 0);
  }
}

/** Replace each piece of the size of a hash by the hash of its index and itself. */
function diffuse(bytes: Buffer, hash: HashName): void {
  const size = hashSize(hash);
  const number = Buffer.alloc(4);
  for (let at = 0; at < bytes.length; at += size) {
    number.writeUInt32BE(at / size);
    const piece = bytes.subarray(at, at + size);
    const digest = lazyModules.crypto.createHash(hash).update(number).update(piece).digest();
    piece.set(digest.subarray(0, piece.length));
  }
}
