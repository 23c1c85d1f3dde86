/**
 * Requests that take long, and may be given up: the thread that works on one asks between its pieces whether anybody
 * still waits for it. The kernel tells another thread that whoever waits was interrupted, perhaps before the work has
 * begun. Words of shared memory:
 *
 *     word 0        1: the daemon is to end, and nothing that takes long is worth it
 *     word 1        the request that was interrupted last
 *     word 2 + n    the request that thread n works on; 0: none; odd: it was interrupted
 *
 * Requests are named by the low halves of their `unique`, which the kernel counts in steps of two: another one of the
 * same name comes two thousand million requests later.
 */

const END = 0;
const LAST = 1;
const FIRST_THREAD = 2;

/** Memory for the threads of a mount. */
export function createInterruptions(threads: number): SharedArrayBuffer {
  return new SharedArrayBuffer((FIRST_THREAD + threads) * Int32Array.BYTES_PER_ELEMENT);
}

/** The daemon is to end: whatever may be given up is. */
export function interruptAll(memory: SharedArrayBuffer): void {
  Atomics.store(new Int32Array(memory), END, 1);
}

/** The interruptions of a mount, as one thread sees them. */
export class Interruptions {
  readonly #words: Int32Array;
  readonly #word: number;

  constructor(memory: SharedArrayBuffer, thread: number) {
    this.#words = new Int32Array(memory);
    this.#word = FIRST_THREAD + thread;
  }

  /**
   * This thread begins to work on a request.
   *
   * @param unique its low half
   */
  begin(unique: number): void {
    const words = this.#words;
    Atomics.store(words, this.#word, unique);
    // Whoever hears of an interruption writes that word first, and looks for the thread then.
    if (Atomics.load(words, LAST) === (unique | 0)) this.#mark(this.#word, unique);
  }

  /** This thread has done, or given up, the request. */
  end(): void {
    Atomics.store(this.#words, this.#word, 0);
  }

  /** Somebody waits for what this thread works on, and the daemon is to go on. */
  get isWanted(): boolean {
    const words = this.#words;
    return Atomics.load(words, END) === 0 && (Atomics.load(words, this.#word) & 1) === 0;
  }

  /**
   * Whoever waits for a request was interrupted.
   *
   * @param unique its low half
   */
  interrupt(unique: number): void {
    Atomics.store(this.#words, LAST, unique);
    for (let word = FIRST_THREAD; word < this.#words.length; word++) this.#mark(word, unique);
  }

  #mark(word: number, unique: number): void {
    Atomics.compareExchange(this.#words, word, unique, unique | 1);
  }
}
