/** Block ciphers, a block or many blocks at a time, in place: what all modes are made of. */

import assert from "node:assert";
import { UnsupportedError } from "../../errors.ts";
import { type LibcryptoFunctions, loadLibcrypto } from "../../syscalls/libcrypto.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { ALGORITHMS, type CipherAlgorithm } from "./cipher-suite.ts";

export class BlockCipher {
  readonly #libcrypto: LibcryptoFunctions;
  /** Contexts; 0: freed. */
  #encrypting: number;
  #decrypting: number;
  /** Where libcrypto says how much it has done. */
  readonly #done = NativeBuffer.allocate(Int32Array.BYTES_PER_ELEMENT);

  /**
   * @param key of a size that the algorithm has; not used any more afterwards
   * @throws {UnsupportedError} there is no libcrypto, or it has no such cipher
   */
  constructor(algorithm: CipherAlgorithm, key: Uint8Array) {
    const { keySizes } = ALGORITHMS[algorithm];
    assert(keySizes.includes(key.length), `a key of ${key.length} bytes for ${algorithm}`);
    const libcrypto = loadLibcrypto();
    if (libcrypto === undefined) {
      throw new UnsupportedError(
        "libcrypto.so.3",
        "not found, it is needed for encrypted images; install libssl3",
      );
    }
    this.#libcrypto = libcrypto;
    const type = typeOf(libcrypto, algorithm, key.length);
    const copy = NativeBuffer.allocate(key.length);
    copy.bytes.set(key);
    try {
      this.#encrypting = this.#newContext(type, copy, 1);
      this.#decrypting = this.#newContext(type, copy, 0);
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

  /** Leave nothing of the key in memory. It is not used any more. */
  free(): void {
    const contexts = [this.#encrypting, this.#decrypting];
    this.#encrypting = 0;
    this.#decrypting = 0;
    for (const context of contexts) if (context !== 0) this.#libcrypto.freeContext(context);
  }

  #newContext(type: number, key: NativeBuffer, encrypts: 0 | 1): number {
    const libcrypto = this.#libcrypto;
    const context = libcrypto.newContext();
    const isReady =
      context !== 0 &&
      libcrypto.init(context, type, 0, key.address, 0, encrypts) === 1 &&
      libcrypto.setPadding(context, 0) === 1;
    assert(isReady, "libcrypto has no memory left");
    return context;
  }

  #update(context: number, address: number, length: number): void {
    assert(context !== 0, "a cipher that was freed");
    const result = this.#libcrypto.update(context, address, this.#done.address, address, length);
    assert(result === 1, "libcrypto has failed");
  }
}

/** The EVP_CIPHER of an algorithm in ECB. @throws {UnsupportedError} there is none */
function typeOf(
  libcrypto: LibcryptoFunctions,
  algorithm: CipherAlgorithm,
  keySize: number,
): number {
  const type = algorithm === "cast5" ? libcrypto.cast5Ecb() : libcrypto.aesEcb[keySize]?.();
  if (type !== undefined && type !== 0) return type;
  assert(algorithm === "cast5", "libcrypto without AES");
  throw new UnsupportedError(
    "libcrypto.so.3",
    "CAST5 is in the legacy provider of OpenSSL (legacy.so), which cannot be loaded",
  );
}
