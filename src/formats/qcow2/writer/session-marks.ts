/** What a session of writing notes down in a qcow2 image or keeps in mind: dirty, corrupt, a failed fdatasync. */

import { CorruptionError, TsimgfsError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { HeaderWriter } from "./header-writer.ts";
import { type SharedState, WORD } from "./shared-state.ts";

export class SessionMarks {
  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #headerWriter: HeaderWriter;

  constructor(state: SharedState, storage: WritableStorage, headerWriter: HeaderWriter) {
    this.#state = state;
    this.#storage = storage;
    this.#headerWriter = headerWriter;
  }

  /**
   * Wait until what was written is durable. After a failure nobody knows what is: no cluster changes its
   * owner any more.
   *
   * @param file the image, or its data file
   */
  sync(file = this.#storage): void {
    if (this.#state.isSet(WORD.syncFailed)) {
      throw new TsimgfsError("EIO", file.path, "an earlier fdatasync failed");
    }
    try {
      file.sync();
    } catch (error) {
      this.#state.raise(WORD.syncFailed);
      throw error;
    }
  }

  /** The dirty bit tells the next writer that clusters may be leaked. Version 2 has no such bit. */
  markDirty(): void {
    if (this.#state.isSet(WORD.dirty)) return;
    this.#headerWriter.announce();
    // Who has found damage meanwhile cannot wait for us: his bit may be gone.
    if (this.#state.isSet(WORD.corrupt)) this.writeCorrupt();
    this.sync();
    this.#state.raise(WORD.dirty);
  }

  /** At the end of the session. */
  clearDirty(): void {
    this.#headerWriter.setIncompatible("dirty", false);
    this.sync();
    Atomics.store(this.#state.words, WORD.dirty, 0);
  }

  /**
   * Write down that the image is corrupt: nothing more is written to it.
   *
   * @throws {CorruptionError} always
   */
  markCorrupt(reason: string, offset?: number): never {
    if (!this.#state.isSet(WORD.corrupt)) {
      this.#state.raise(WORD.corrupt);
      this.writeCorrupt();
    }
    const text = `${reason}; the image is marked corrupt and not written to any more`;
    throw new CorruptionError(this.#storage.path, text, offset === undefined ? {} : { offset });
  }

  /** Set the corrupt bit in the file. */
  writeCorrupt(): void {
    this.#headerWriter.setIncompatible("corrupt", true);
    this.#storage.sync();
  }
}
