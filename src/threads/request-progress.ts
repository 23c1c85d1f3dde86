/**
 * Which threads are in the middle of a request, and whether they get on: one word of shared memory for each,
 * which counts beginnings and ends of requests. Only its own thread writes it; odd: in the middle of one.
 */

/** Memory for the threads of a mount. */
export function createRequestProgress(threads: number): SharedArrayBuffer {
  return new SharedArrayBuffer(threads * Int32Array.BYTES_PER_ELEMENT);
}

/** The progress of one thread, which alone uses this. */
export class RequestProgress {
  readonly #words: Int32Array;
  readonly #thread: number;

  constructor(memory: SharedArrayBuffer, thread: number) {
    this.#words = new Int32Array(memory);
    this.#thread = thread;
  }

  /** A request begins, or ends. */
  step(): void {
    Atomics.add(this.#words, this.#thread, 1);
  }
}

/** Tells requests that come to no end, as seen by another thread that looks again and again. */
export class StuckRequests {
  readonly #words: Int32Array;
  readonly #last: Int32Array;
  readonly #since: Float64Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory);
    this.#last = new Int32Array(this.#words.length);
    this.#since = new Float64Array(this.#words.length);
  }

  /**
   * How long the request is under way that has been for longest, as far as it was looked; 0: none is.
   *
   * @param nowMs by performance.now()
   * @returns milliseconds
   */
  longest(nowMs: number): number {
    let longest = 0;
    for (let thread = 0; thread < this.#words.length; thread++) {
      const step = Atomics.load(this.#words, thread);
      if (step !== this.#last[thread] || step % 2 === 0) {
        this.#last[thread] = step;
        this.#since[thread] = nowMs;
      } else longest = Math.max(longest, nowMs - (this.#since[thread] ?? nowMs));
    }
    return longest;
  }
}
