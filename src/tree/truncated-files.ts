/**
 * Devices that somebody opened with O_TRUNC. A device keeps its size and its bytes, so that dd and cp can
 * write to it; but who has emptied a file takes what he skips for zeros: cp does not write the holes of
 * its source. So what is skipped between his writes becomes zeros. Behind his last write all stays.
 *
 * For each open file, in memory that all threads share:
 *
 *     2 words     1: in use | the mutex of its writes
 *     1 double    the end of what was written or zeroed, bytes
 *
 * and one word for each device: 1 after something was zeroed, or written through a partition, that the kernel
 * may have cached.
 */

import { Mutex } from "../threads/mutex.ts";

/** Files open at once that are kept track of; what more there are, are only written. */
const FILES_MAX = 256;

const FILE_BYTES = 16;
const WORDS_PER_FILE = FILE_BYTES / Int32Array.BYTES_PER_ELEMENT;
const DOUBLES_PER_FILE = FILE_BYTES / Float64Array.BYTES_PER_ELEMENT;
const IN_USE = 0;
const MUTEX = 1;
const END = 1;

/** Handles of other files. */
export const PLAIN_HANDLE = 0;

/** Memory for the files of one mount. */
export function createTruncatedFiles(devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(FILES_MAX * FILE_BYTES + devices * Int32Array.BYTES_PER_ELEMENT);
}

/** Lets a range of a device read as zeros. */
type Zero = (offset: number, length: number) => void;

/** The files of one device. */
export class TruncatedFiles {
  readonly #words: Int32Array;
  readonly #ends: Float64Array;
  readonly #staleWord: number;

  constructor(memory: SharedArrayBuffer, device: number) {
    this.#words = new Int32Array(memory);
    this.#ends = new Float64Array(memory, 0, FILES_MAX * DOUBLES_PER_FILE);
    this.#staleWord = FILES_MAX * WORDS_PER_FILE + device;
  }

  /**
   * A handle for a file that is opened with O_TRUNC.
   *
   * @param start of the file on the device, bytes
   */
  open(start = 0): number {
    for (let file = 0; file < FILES_MAX; file++) {
      const word = file * WORDS_PER_FILE + IN_USE;
      if (Atomics.compareExchange(this.#words, word, 0, 1) !== 0) continue;
      this.#ends[file * DOUBLES_PER_FILE + END] = start;
      return file + 1;
    }
    return PLAIN_HANDLE;
  }

  release(handle: number): void {
    if (handle === PLAIN_HANDLE) return;
    Atomics.store(this.#words, (handle - 1) * WORDS_PER_FILE + IN_USE, 0);
  }

  /**
   * Before bytes up to `end` are written from `start` on: what was skipped becomes zeros. Writes that come
   * in another order wait for that, and so are not zeroed after they were written.
   */
  advance(handle: number, start: number, end: number, zero: Zero): void {
    if (handle === PLAIN_HANDLE) return;
    const file = handle - 1;
    const at = file * DOUBLES_PER_FILE + END;
    const mutex = new Mutex(this.#words, file * WORDS_PER_FILE + MUTEX);
    mutex.lock();
    try {
      const known = this.#ends[at] ?? 0;
      if (start > known) {
        zero(known, start - known);
        this.markStale();
      }
      this.#ends[at] = Math.max(known, end);
    } finally {
      mutex.unlock();
    }
  }

  /** The device has changed in a way that the kernel does not know of: it may have cached what was there. */
  markStale(): void {
    Atomics.store(this.#words, this.#staleWord, 1);
  }

  /** Whether the kernel may have cached what was changed since the last time this was asked. */
  takeStale(): boolean {
    return Atomics.exchange(this.#words, this.#staleWord, 0) !== 0;
  }
}
