/**
 * Which threads of a crew wait for work: two, if that is enough. Each thread has its own compiled code, caches
 * and buffers, and the kernel hands out requests in turn: with fewer threads each is warm sooner, and the
 * rest costs no memory. Whoever takes the last one's place calls another: so while work comes in, a thread
 * waits for it, however long the others take.
 *
 *     word 0   threads that wait for work, or are about to
 *     word 1   threads that are parked
 *     word 2   counts calls of parked threads
 *     word 3   1: there is no more work
 */

const WAITING = 0;
const PARKED = 1;
const CALLS = 2;
const ENDED = 3;
const WORDS = 4;

/** Threads that wait for work although one would do: it is not called for each request. */
const WAITING_MAX = 2;
/** A thread that was one too many so often in a row is parked. */
const PATIENCE = 1000;

/** Memory for a crew. */
export function createThreadCrew(): SharedArrayBuffer {
  return new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT);
}

export class ThreadCrew {
  readonly #words: Int32Array;
  /** Threads that waited when this one joined them. */
  #others = 0;
  /** How often in a row this thread was one too many; at first it is not patient. */
  #surplus = PATIENCE;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory);
  }

  /** This thread has time for work: it waits already, or will at once. */
  join(): void {
    this.#others = Atomics.add(this.#words, WAITING, 1);
  }

  /** Having joined, before waiting; returns when this thread is needed. */
  rest(): void {
    while (this.#others >= WAITING_MAX) {
      if (this.#surplus < PATIENCE) {
        this.#surplus++;
        return;
      }
      this.#park();
      this.join();
    }
    this.#surplus = 0;
  }

  /** This thread has got work. */
  leave(): void {
    const words = this.#words;
    if (Atomics.sub(words, WAITING, 1) > 1 || Atomics.load(words, PARKED) === 0) return;
    Atomics.add(words, CALLS, 1);
    Atomics.notify(words, CALLS, 1);
  }

  /** There is no more work: parked threads go and see. */
  end(): void {
    const words = this.#words;
    Atomics.store(words, ENDED, 1);
    Atomics.add(words, CALLS, 1);
    Atomics.notify(words, CALLS);
  }

  #park(): void {
    const words = this.#words;
    // In this order: who takes the last one's place either sees this thread parked, or is seen by it.
    Atomics.add(words, PARKED, 1);
    const calls = Atomics.load(words, CALLS);
    const others = Atomics.sub(words, WAITING, 1) - 1;
    if (others > 0 && Atomics.load(words, ENDED) === 0) Atomics.wait(words, CALLS, calls);
    Atomics.sub(words, PARKED, 1);
    this.#surplus = 0;
  }
}
