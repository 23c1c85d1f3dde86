/** AES, block by block and many blocks at a time, in place: what all modes are made of. */

import assert from "node:assert";
import { UnsupportedError } from "../../errors.ts";
import { type LibcryptoFunctions, loadLibcrypto } from "../../syscalls/libcrypto.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";

/** Bytes. */
export const AES_BLOCK_SIZE = 16;

export class Aes {
  readonly #libcrypto: LibcryptoFunctions;
  readonly #encrypting: number;
  readonly #decrypting: number;
  /** Where libcrypto says how much it has done. */
  readonly #done = NativeBuffer.allocate(Int32Array.BYTES_PER_ELEMENT);

  /**
   * @param key 16, 24 or 32 bytes; not used any more afterwards
   * @throws {UnsupportedError} there is no libcrypto
   */
  constructor(key: Uint8Array) {
    const libcrypto = loadLibcrypto();
    if (libcrypto === undefined) {
      throw new UnsupportedError(
        "libcrypto.so.3",
        "not found, it is needed for encrypted images; install libssl3",
      );
    }
    this.#libcrypto = libcrypto;
    const copy = NativeBuffer.allocate(key.length);
    copy.bytes.set(key);
    try {
      this.#encrypting = this.#newContext(copy, 1);
      this.#decrypting = this.#newContext(copy, 0);
    } finally {
      copy.bytes.fill(0);
    }
  }

  /** Encrypt whole blocks from `buffer.bytes[start]` on. */
  encrypt(buffer: NativeBuffer, start: number, length: number): void {
    this.#update(this.#encrypting, buffer.address + start, length);
  }

  /** As `encrypt`, the other way. */
  decrypt(buffer: NativeBuffer, start: number, length: number): void {
    this.#update(this.#decrypting, buffer.address + start, length);
  }

  #newContext(key: NativeBuffer, encrypts: 0 | 1): number {
    const libcrypto = this.#libcrypto;
    const type = libcrypto.aesEcb[key.length]?.();
    assert(type !== undefined, `an AES key of ${key.length} bytes`);
    const context = libcrypto.newContext();
    const isReady =
      context !== 0 &&
      libcrypto.init(context, type, 0, key.address, 0, encrypts) === 1 &&
      libcrypto.setPadding(context, 0) === 1;
    assert(isReady, "libcrypto has no memory left");
    return context;
  }

  #update(context: number, address: number, length: number): void {
    const result = this.#libcrypto.update(context, address, this.#done.address, address, length);
    assert(result === 1, "libcrypto has failed");
  }
}
