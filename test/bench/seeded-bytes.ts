/** Pseudo-random bytes that are the same in every run: the key stream of AES in counter mode. */

import { createCipheriv } from "node:crypto";

export class SeededBytes {
  readonly #cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16, "tsimgfs"), Buffer.alloc(16));

  /** The next `length` bytes, in a buffer of the caller's. */
  next(length: number): Buffer {
    return this.#cipher.update(Buffer.alloc(length));
  }
}
