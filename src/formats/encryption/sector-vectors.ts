/**
 * Initialisation vectors of sectors: their numbers, little-endian, in the 16 bytes of an AES block, and
 * with essiv encrypted.
 */

import crypto from "node:crypto";
import { TWO_TO_32 } from "../../binary/words.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { AES_BLOCK_SIZE, Aes } from "./aes.ts";
import type { CipherSuite } from "./cipher-suite.ts";

export class SectorVectors {
  readonly #has64Bits: boolean;
  readonly #essiv: Aes | undefined;

  /** @param key of the sectors */
  constructor({ ivGenerator, ivHash }: CipherSuite, key: Uint8Array) {
    this.#has64Bits = ivGenerator !== "plain";
    if (ivGenerator !== "essiv" || ivHash === undefined) return;
    const salt = crypto.createHash(ivHash).update(key).digest();
    this.#essiv = new Aes(salt);
    salt.fill(0);
  }

  /**
   * Write the vectors of sectors one after the other to the start of `out`.
   *
   * @param first number of the first sector
   */
  fill(out: NativeBuffer, first: number, sectors: number): void {
    const { view } = out;
    for (let index = 0; index < sectors; index++) {
      const sector = first + index;
      const at = index * AES_BLOCK_SIZE;
      view.setUint32(at, sector % TWO_TO_32, true);
      view.setUint32(at + 4, this.#has64Bits ? sector / TWO_TO_32 : 0, true);
      view.setUint32(at + 8, 0);
      view.setUint32(at + 12, 0);
    }
    this.#essiv?.encrypt(out, 0, sectors * AES_BLOCK_SIZE);
  }
}
