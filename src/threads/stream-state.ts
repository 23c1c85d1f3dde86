/**
 * The streaming of a mount's images, as all threads see it. Who asks for something changes the state, at
 * once; the upkeep thread does what it says, and writes down how far it is.
 *
 *     1 word a device      the state: the index in STREAM_STATES
 *     5 doubles a device   bytes of the disk done | bytes of the disk | bytes copied
 *                          | bytes a second, measured | the limit to that, 0: none
 */

export const STREAM_STATES = ["idle", "running", "paused", "done", "failed"] as const;
export type StreamStateName = (typeof STREAM_STATES)[number];

const [IDLE, RUNNING, PAUSED, DONE, FAILED] = [0, 1, 2, 3, 4];
const DOUBLES = 5;
const BYTES_PER_DEVICE = DOUBLES * Float64Array.BYTES_PER_ELEMENT + 8;
const LIMIT = 4;

/** How far streaming is. Sizes in bytes. */
export interface StreamProgress {
  /** From the start of the disk on. */
  readonly done: number;
  /** The disk. */
  readonly total: number;
  /** What the image lacked. */
  readonly copied: number;
  /** Copied in a second. */
  readonly rate: number;
}

/** Memory for the streaming of all devices of a mount. */
export function createStreamStates(devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(devices * BYTES_PER_DEVICE);
}

/** The streaming of one device. */
export class StreamState {
  readonly #word: Int32Array;
  readonly #numbers: Float64Array;

  constructor(memory: SharedArrayBuffer, device: number) {
    const at = device * BYTES_PER_DEVICE;
    this.#numbers = new Float64Array(memory, at, DOUBLES);
    this.#word = new Int32Array(memory, at + DOUBLES * Float64Array.BYTES_PER_ELEMENT, 1);
  }

  get name(): StreamStateName {
    return STREAM_STATES[Atomics.load(this.#word, 0)] ?? "idle";
  }

  /** Bytes a second that must not be passed; undefined: as fast as it goes. */
  get limit(): number | undefined {
    return this.#numbers[LIMIT] || undefined;
  }

  get progress(): StreamProgress {
    const [done = 0, total = 0, copied = 0, rate = 0] = this.#numbers;
    return { done, total, copied, rate };
  }

  set progress({ done, total, copied, rate }: StreamProgress) {
    this.#numbers.set([done, total, copied, rate]);
  }

  /**
   * Let it run, or go on; what runs gets another limit.
   *
   * @returns false: there is nothing to stream any more
   */
  start(limit: number | undefined): boolean {
    this.#numbers[LIMIT] = limit ?? 0;
    return this.#change([IDLE, RUNNING, PAUSED, FAILED], RUNNING);
  }

  /** Returns false if it does not run. */
  pause(): boolean {
    return this.#change([RUNNING, PAUSED], PAUSED);
  }

  /** What was copied stays. Returns false if it has come to its end. */
  cancel(): boolean {
    return this.#change([IDLE, RUNNING, PAUSED, FAILED], IDLE);
  }

  /** It has come to an end, or cannot go on. In the upkeep thread. */
  end(how: "done" | "failed"): void {
    Atomics.store(this.#word, 0, how === "done" ? DONE : FAILED);
  }

  #change(from: readonly number[], to: number): boolean {
    for (;;) {
      const state = Atomics.load(this.#word, 0);
      if (!from.includes(state)) return false;
      if (Atomics.compareExchange(this.#word, 0, state, to) === state) return true;
    }
  }
}
