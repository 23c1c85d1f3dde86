/**
 * Whether a thread gets on with its work: a word of shared memory that it changes after each piece of it, and
 * now and then while it has none. Only its own thread writes it.
 */

export function createHeartbeat(): SharedArrayBuffer {
  return new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
}

/** The heartbeat of a thread, which alone uses this. */
export class Heartbeat {
  readonly #word: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#word = new Int32Array(memory);
  }

  beat(): void {
    Atomics.add(this.#word, 0, 1);
  }
}

/** The heartbeat as seen by another thread that looks again and again. */
export class HeartbeatWatch {
  readonly #word: Int32Array;
  #last: number | undefined;
  #since = 0;

  constructor(memory: SharedArrayBuffer) {
    this.#word = new Int32Array(memory);
  }

  /**
   * For how long there was no beat, as far as it was looked.
   *
   * @param nowMs by performance.now()
   * @returns milliseconds
   */
  silence(nowMs: number): number {
    const word = Atomics.load(this.#word, 0);
    if (word !== this.#last) {
      this.#last = word;
      this.#since = nowMs;
    }
    return nowMs - this.#since;
  }
}
