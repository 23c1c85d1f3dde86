/** A lock between threads on one word of shared memory. */

const FREE = 0;
const HELD = 1;
const CONTENDED = 2;

/** Waiting for longer than this is left to the kernel, ms; looking at the clock as often as this. */
const ACTIVE_MAX_MS = 2;
const LOOKS = 1000;

/** Short critical sections only: a waiting thread sleeps in the kernel and serves nobody. */
export class Mutex {
  readonly #words: Int32Array;
  readonly #index: number;

  /** @param words over a SharedArrayBuffer; `words[index]` belongs to the mutex and starts as 0 */
  constructor(words: Int32Array, index: number) {
    this.#words = words;
    this.#index = index;
  }

  lock(): void {
    const words = this.#words;
    const index = this.#index;
    if (Atomics.compareExchange(words, index, FREE, HELD) === FREE) return;
    // Whoever may have waited marks the word, so that unlock knows to wake somebody.
    while (Atomics.exchange(words, index, CONTENDED) !== FREE) {
      Atomics.wait(words, index, CONTENDED);
    }
  }

  /** As `lock`, looking for a while before it sleeps: to be woken up takes the tenth of a millisecond on a virtual machine. */
  lockActively(): void {
    const words = this.#words;
    const index = this.#index;
    const end = performance.now() + ACTIVE_MAX_MS;
    do {
      for (let look = 0; look < LOOKS; look++) {
        if (Atomics.load(words, index) !== FREE) continue;
        if (Atomics.compareExchange(words, index, FREE, HELD) === FREE) return;
      }
    } while (performance.now() < end);
    this.lock();
  }

  unlock(): void {
    if (Atomics.exchange(this.#words, this.#index, FREE) === CONTENDED) {
      Atomics.notify(this.#words, this.#index, 1);
    }
  }
}
