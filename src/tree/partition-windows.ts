/**
 * Windows of disks that partitions are seen through. A window never changes: when a table does, its
 * partitions get other windows, and with them other node ids; who has a file open keeps what he has. All
 * threads share them, for each device:
 *
 *     2 words              the mutex of registration | the sequence number of the next window, less 1
 *     1024 pairs of words  sequence number, 0: none | number of the partition
 *     1024 pairs of doubles  start | size, bytes
 *
 * Window n stands at place n % 1024: the oldest is forgotten for a new one.
 */

import { Mutex } from "../threads/mutex.ts";

/** More than four tables full of partitions. */
const WINDOWS_MAX = 1024;

const MUTEX = 0;
const LAST = 1;
const FIRST_PAIR = 2;
const PAIRS_BYTES = (FIRST_PAIR + 2 * WINDOWS_MAX) * Int32Array.BYTES_PER_ELEMENT;
const DEVICE_BYTES = PAIRS_BYTES + 2 * WINDOWS_MAX * Float64Array.BYTES_PER_ELEMENT;

/** Memory for the devices of one mount. */
export function createPartitionWindows(devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(devices * DEVICE_BYTES);
}

export interface PartitionWindow {
  /** Of the partition, as Linux counts. */
  readonly number: number;
  /** Bytes. */
  readonly start: number;
  /** Bytes, > 0. */
  readonly size: number;
}

/** The windows of one device. */
export class PartitionWindows {
  readonly #words: Int32Array;
  readonly #doubles: Float64Array;
  readonly #mutex: Mutex;

  constructor(memory: SharedArrayBuffer, device: number) {
    const at = device * DEVICE_BYTES;
    this.#words = new Int32Array(memory, at, FIRST_PAIR + 2 * WINDOWS_MAX);
    this.#doubles = new Float64Array(memory, at + PAIRS_BYTES, 2 * WINDOWS_MAX);
    this.#mutex = new Mutex(this.#words, MUTEX);
  }

  /** The sequence number of a window, > 0: a new one, unless it is known. */
  register(window: PartitionWindow): number {
    this.#mutex.lock();
    try {
      const last = this.#words[LAST] ?? 0;
      for (let known = last; known > 0 && known > last - WINDOWS_MAX; known--) {
        if (this.#isAt(known % WINDOWS_MAX, window)) return known;
      }
      const sequence = last + 1;
      const place = sequence % WINDOWS_MAX;
      Atomics.store(this.#words, FIRST_PAIR + 2 * place, 0);
      this.#words[FIRST_PAIR + 2 * place + 1] = window.number;
      this.#doubles[2 * place] = window.start;
      this.#doubles[2 * place + 1] = window.size;
      Atomics.store(this.#words, FIRST_PAIR + 2 * place, sequence);
      this.#words[LAST] = sequence;
      return sequence;
    } finally {
      this.#mutex.unlock();
    }
  }

  /** Whether a window is still known; the answer costs one load. */
  has(sequence: number): boolean {
    const place = sequence % WINDOWS_MAX;
    return sequence > 0 && Atomics.load(this.#words, FIRST_PAIR + 2 * place) === sequence;
  }

  /** The window with this sequence number; undefined: there was none, or it was long ago. */
  find(sequence: number): PartitionWindow | undefined {
    const place = sequence % WINDOWS_MAX;
    this.#mutex.lock();
    try {
      if (!this.has(sequence)) return undefined;
      const number = this.#words[FIRST_PAIR + 2 * place + 1] ?? 0;
      const start = this.#doubles[2 * place] ?? 0;
      return { number, start, size: this.#doubles[2 * place + 1] ?? 0 };
    } finally {
      this.#mutex.unlock();
    }
  }

  #isAt(place: number, { number, start, size }: PartitionWindow): boolean {
    return (
      this.#words[FIRST_PAIR + 2 * place + 1] === number &&
      this.#doubles[2 * place] === start &&
      this.#doubles[2 * place + 1] === size
    );
  }
}
