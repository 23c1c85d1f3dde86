/**
 * How often the devices of a mount are open, their partitions included: one word for each, in memory that all
 * threads share. While one changes as a whole it cannot be opened.
 */

/** The word of a device that changes as a whole. */
const ALONE = -1;
/** The kernel tells of a close after close(2) has returned: so long another thread may take to hear of it, ms. */
const CLOSE_MS = 200;

/** Memory for all devices of a mount. */
export function createDeviceOpens(devices: number): SharedArrayBuffer {
  return new SharedArrayBuffer(devices * Int32Array.BYTES_PER_ELEMENT);
}

/** One device. */
export class DeviceOpens {
  readonly #words: Int32Array;
  readonly #word: number;

  constructor(memory: SharedArrayBuffer, device: number) {
    this.#words = new Int32Array(memory);
    this.#word = device;
  }

  /** It is opened once more; waits while it changes as a whole. */
  add(): void {
    for (;;) {
      const count = Atomics.load(this.#words, this.#word);
      if (count === ALONE) Atomics.wait(this.#words, this.#word, ALONE);
      else if (this.#change(count, count + 1)) return;
    }
  }

  /** It was closed. */
  remove(): void {
    Atomics.sub(this.#words, this.#word, 1);
    Atomics.notify(this.#words, this.#word);
  }

  /**
   * Change the device as a whole, if it is not open.
   *
   * @returns false: it is, and nothing was done
   * @throws what `action` throws
   */
  alone(action: () => void): boolean {
    const end = performance.now() + CLOSE_MS;
    while (!this.#change(0, ALONE)) {
      const left = end - performance.now();
      if (left <= 0) return false;
      Atomics.wait(this.#words, this.#word, Atomics.load(this.#words, this.#word), left);
    }
    try {
      action();
    } finally {
      Atomics.store(this.#words, this.#word, 0);
      Atomics.notify(this.#words, this.#word);
    }
    return true;
  }

  #change(from: number, to: number): boolean {
    return Atomics.compareExchange(this.#words, this.#word, from, to) === from;
  }
}
