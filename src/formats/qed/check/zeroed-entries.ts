/** Table entries that become 0: adjacent ones in one write. */

import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";

const ENTRY_SIZE = 8;

/** Bytes of a write, at the most. */
const WRITE_MAX = 65536;

export class ZeroedEntries {
  readonly #storage: WritableStorage;
  readonly #zeros = NativeBuffer.allocate(WRITE_MAX);
  /** Host offset and length, bytes, of entries that are not yet written. */
  #start = 0;
  #length = 0;

  constructor(storage: WritableStorage) {
    this.#storage = storage;
  }

  /**
   * @param offset host offset of the entry
   * @throws {StorageError}
   */
  add(offset: number): void {
    const isNext = offset === this.#start + this.#length;
    if (!isNext || this.#length === WRITE_MAX) {
      this.end();
      this.#start = offset;
    }
    this.#length += ENTRY_SIZE;
  }

  /**
   * Write what is left.
   *
   * @throws {StorageError}
   */
  end(): void {
    if (this.#length > 0) this.#storage.writeAt(this.#zeros, 0, this.#length, this.#start);
    this.#length = 0;
  }
}
