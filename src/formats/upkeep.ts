/** What several threads do for an image one at a time, and asking another thread to do it soon. */

import { Mutex } from "../threads/mutex.ts";
import { type SharedWords, WRITER_WORD } from "./shared-words.ts";

export class Upkeep {
  readonly #words: Int32Array;
  readonly #structure: Mutex;
  readonly #requestMaintenance: (() => void) | undefined;

  /** @param requestMaintenance asks for a call of `maintain` soon; undefined: nobody else does it */
  constructor(state: SharedWords, requestMaintenance: (() => void) | undefined) {
    this.#words = state.words;
    this.#structure = new Mutex(state.words, WRITER_WORD.structureMutex);
    this.#requestMaintenance = requestMaintenance;
  }

  /** Ask for maintenance, if nobody has since it last began. */
  request(): void {
    if (this.#requestMaintenance === undefined) return;
    if (Atomics.exchange(this.#words, WRITER_WORD.wanted, 1) === 0) this.#requestMaintenance();
  }

  /** Maintain: what comes up from now on must be asked for again. Without the lock of the image. */
  maintain(action: () => void): void {
    Atomics.store(this.#words, WRITER_WORD.wanted, 0);
    this.exclusively(action);
  }

  /** Nobody else reserves clusters or changes the header meanwhile. Without the lock of the image. */
  exclusively(action: () => void): void {
    this.#structure.lock();
    try {
      action();
    } finally {
      this.#structure.unlock();
    }
  }
}
