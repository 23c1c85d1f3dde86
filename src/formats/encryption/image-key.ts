/** The key of an image's data: shared by all threads, each of which makes a cipher of it. */

import type { CipherSuite } from "./cipher-suite.ts";
import { SectorCipher } from "./sector-cipher.ts";

/**
 * What the number of a sector, of which its initialisation vector is made, counts from: the start of the
 * file that it is stored in, or of the disk.
 */
export type SectorOrigin = "host" | "guest";

/** Plain data for structured clone; the key itself is there once. */
export interface ImageKey {
  readonly suite: CipherSuite;
  readonly origin: SectorOrigin;
  readonly bytes: SharedArrayBuffer;
}

/** The cipher of an image as one thread uses it. */
export interface DataCipher {
  readonly sectors: SectorCipher;
  readonly origin: SectorOrigin;
}

/** Share a key, whose bytes are wiped here. */
export function shareKey(suite: CipherSuite, origin: SectorOrigin, key: Uint8Array): ImageKey {
  const bytes = new SharedArrayBuffer(key.length);
  new Uint8Array(bytes).set(key);
  key.fill(0);
  return { suite, origin, bytes };
}

/** @throws {UnsupportedError} there is no libcrypto */
export function cipherOf({ suite, origin, bytes }: ImageKey): DataCipher {
  return { sectors: new SectorCipher(suite, new Uint8Array(bytes)), origin };
}

/** No thread makes a cipher of it any more. */
export function wipeKey({ bytes }: ImageKey): void {
  new Uint8Array(bytes).fill(0);
}
