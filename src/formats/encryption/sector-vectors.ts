/**
 * Initialisation vectors of sectors: their numbers, little-endian, in the bytes of a block, and with
 * essiv encrypted.
 */

import { TWO_TO_32 } from "../../binary/words.ts";
import type { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { lazyModules } from "../lazy-modules.ts";
import { BlockCipher } from "./block-cipher.ts";
import { ALGORITHMS, type CipherSuite } from "./cipher-suite.ts";

export class SectorVectors {
  readonly #has64Bits: boolean;
  readonly #blockSize: number;
  readonly #essiv: BlockCipher | undefined;

  /** @param key of the sectors */
  constructor({ algorithm, ivGenerator, ivHash }: CipherSuite, key: Uint8Array) {
    this.#blockSize = ALGORITHMS[algorithm].blockSize;
    this.#has64Bits = ivGenerator !== "plain";
    if (ivGenerator !== "essiv" || ivHash === undefined) return;
    const salt = lazyModules.crypto.createHash(ivHash).update(key).digest();
    this.#essiv = new BlockCipher(algorithm, salt);
    salt.fill(0);
  }

  /** As BlockCipher.free. */
  free(): void {
    this.#essiv?.free();
  }

  /**
   * Write the vectors of sectors one after the other to the start of `out`.
   *
   * @param first number of the first sector
   */
  fill(out: NativeBuffer, first: number, sectors: number): void {
    const { view } = out;
    const blockSize = this.#blockSize;
    for (let index = 0; index < sectors; index++) {
      const sector = first + index;
      const at = index * blockSize;
      view.setUint32(at, sector % TWO_TO_32, true);
      view.setUint32(at + 4, this.#has64Bits ? sector / TWO_TO_32 : 0, true);
      for (let rest = 8; rest < blockSize; rest += 4) view.setUint32(at + rest, 0);
    }
    this.#essiv?.encrypt(out, 0, sectors * blockSize);
  }
}
