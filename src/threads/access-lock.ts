/**
 * The reader-writer lock of an image that is written to. Sharing is what every request does, so it costs
 * two stores to a word that no other thread writes; excluding looks at the words of all threads.
 *
 *     word 0           the mutex of those who exclude
 *     word 1           1 while somebody excludes, or waits until he does
 *     word 2           the generation: counts structural changes (the size, the place of the L1 table)
 *     word 3           the mutex of those who change the size: one after the other
 *     word 4           the releases: counts when space of the host that was in use is given to others
 *     word 5           the mutex of those who write data and then what refers to it: one after the other
 *     word 16 + 16 n   1 while slot n shares: a cache line for each thread
 *
 * A thread holds it once at a time, and does not go from shared to exclusive.
 */

import { Mutex } from "./mutex.ts";

const MUTEX_WORD = 0;
const EXCLUSIVE_WORD = 1;
const GENERATION_WORD = 2;
const RESIZE_WORD = 3;
const RELEASES_WORD = 4;
const FILL_WORD = 5;
const FIRST_SLOT_WORD = 16;
const SLOT_WORDS = 16;

/** Memory for the lock of one image. */
export function createAccessLock(slots: number): SharedArrayBuffer {
  const words = FIRST_SLOT_WORD + slots * SLOT_WORDS;
  return new SharedArrayBuffer(words * Int32Array.BYTES_PER_ELEMENT);
}

export class AccessLock {
  /** Taken before any other lock. */
  readonly resizing: Mutex;
  /** Taken before the lock itself, by who holds neither. */
  readonly filling: Mutex;
  readonly #words: Int32Array;
  readonly #mutex: Mutex;
  readonly #own: number;

  /** @param slot a number that no other thread uses, below the number of slots */
  constructor(memory: SharedArrayBuffer, slot: number) {
    this.#words = new Int32Array(memory);
    this.#mutex = new Mutex(this.#words, MUTEX_WORD);
    this.resizing = new Mutex(this.#words, RESIZE_WORD);
    this.filling = new Mutex(this.#words, FILL_WORD);
    this.#own = FIRST_SLOT_WORD + slot * SLOT_WORDS;
  }

  lockShared(): void {
    const words = this.#words;
    Atomics.store(words, this.#own, 1);
    if (Atomics.load(words, EXCLUSIVE_WORD) === 0) return;
    // Back out, or the one who excludes would wait for a thread that waits for him.
    this.unlockShared();
    // In the queue of the mutex nobody is passed over for ever.
    this.#mutex.lock();
    Atomics.store(words, this.#own, 1);
    this.#mutex.unlock();
  }

  unlockShared(): void {
    const words = this.#words;
    Atomics.store(words, this.#own, 0);
    if (Atomics.load(words, EXCLUSIVE_WORD) !== 0) Atomics.notify(words, this.#own);
  }

  lockExclusive(): void {
    const words = this.#words;
    this.#mutex.lock();
    Atomics.store(words, EXCLUSIVE_WORD, 1);
    for (let word = FIRST_SLOT_WORD; word < words.length; word += SLOT_WORDS) {
      while (Atomics.load(words, word) !== 0) Atomics.wait(words, word, 1);
    }
  }

  unlockExclusive(): void {
    Atomics.store(this.#words, EXCLUSIVE_WORD, 0);
    this.#mutex.unlock();
  }

  /** Do something while all others are kept out; for what happens seldom, since it takes a closure. */
  exclusively(action: () => void): void {
    this.lockExclusive();
    try {
      action();
    } finally {
      this.unlockExclusive();
    }
  }

  /** Changes whenever something has changed that threads keep a copy of. */
  get generation(): number {
    return Atomics.load(this.#words, GENERATION_WORD);
  }

  /** Tell all threads to look at the structure again; only while excluding. */
  bumpGeneration(): void {
    Atomics.add(this.#words, GENERATION_WORD, 1);
  }

  /** Changes whenever places on the host that tables referred to may come to hold something else. */
  get releases(): number {
    return Atomics.load(this.#words, RELEASES_WORD);
  }

  /** Places that no table refers to any more are about to be changed, or to be given to others. */
  bumpReleases(): void {
    Atomics.add(this.#words, RELEASES_WORD, 1);
  }
}
