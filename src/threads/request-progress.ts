/**
 * Which threads are in the middle of something, a request above all, and whether they get on: one word of shared
 * memory for each, in a cache line of its own. It counts beginnings and ends, and, by two, calls that the host
 * has answered in between: a medium may be slow. Only its own thread writes it; odd: in the middle of something.
 *
 *     word 0              for how long somebody has waited for an answer, ms, when that was looked at last
 *     word 16 + 16 n      of thread n
 */

/** Who has waited for an answer for so long waits for a medium that is more than slow. */
export const SILENT_MS = 5000;

const THREAD_WORDS = 16;
const WAITED_WORD = 0;

function threadWord(thread: number): number {
  return (1 + thread) * THREAD_WORDS;
}

/** Memory for the threads of a mount. */
export function createRequestProgress(threads: number): SharedArrayBuffer {
  return new SharedArrayBuffer(threadWord(threads) * Int32Array.BYTES_PER_ELEMENT);
}

/** The progress of one thread, which alone uses this. */
export class RequestProgress {
  readonly #words: Int32Array;
  readonly #word: number;

  constructor(memory: SharedArrayBuffer, thread: number) {
    this.#words = new Int32Array(memory);
    this.#word = threadWord(thread);
  }

  /** A request begins, or ends. */
  step(): void {
    Atomics.add(this.#words, this.#word, 1);
  }

  /** The host has answered a call. */
  advance(): void {
    Atomics.add(this.#words, this.#word, 2);
  }

  /** Some thread waits for a medium that gives no answer, as `StuckRequests` of another thread has found last. */
  get isSilent(): boolean {
    return Atomics.load(this.#words, WAITED_WORD) >= SILENT_MS;
  }

  /** Do something, other than a request, that takes its time. */
  during<T>(action: () => T): T {
    this.step();
    try {
      return action();
    } finally {
      this.step();
    }
  }
}

/** Tells requests that come to no end, as seen by another thread that looks again and again. */
export class StuckRequests {
  readonly #words: Int32Array;
  readonly #last: Int32Array;
  readonly #since: Float64Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory);
    const threads = this.#words.length / THREAD_WORDS - 1;
    this.#last = new Int32Array(threads);
    this.#since = new Float64Array(threads);
  }

  /**
   * For how long the thread has waited that has for longest, in the middle of a request, without an answer of the
   * host, as far as it was looked; 0: none has. All threads are told.
   *
   * @param nowMs by performance.now()
   * @returns milliseconds
   */
  longest(nowMs: number): number {
    let longest = 0;
    for (let thread = 0; thread < this.#last.length; thread++) {
      const step = Atomics.load(this.#words, threadWord(thread));
      if (step !== this.#last[thread] || step % 2 === 0) {
        this.#last[thread] = step;
        this.#since[thread] = nowMs;
      } else longest = Math.max(longest, nowMs - (this.#since[thread] ?? nowMs));
    }
    Atomics.store(this.#words, WAITED_WORD, longest);
    return longest;
  }
}
