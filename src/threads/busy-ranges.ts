/**
 * Guest ranges whose tables are about to change while the lock of the image is not held, because data
 * must be durable or read first. Each slot has one; whoever wants to change what one covers waits.
 *
 *     2 doubles a slot   first byte | byte after the last (0: none); only under the exclusive lock
 *     1 word a slot      counts releases, for those who wait
 */

const DOUBLES_PER_SLOT = 2;
const BYTES_PER_SLOT = DOUBLES_PER_SLOT * Float64Array.BYTES_PER_ELEMENT + 8;

/** Memory for the busy ranges of one image. */
export function createBusyRanges(slots: number): SharedArrayBuffer {
  return new SharedArrayBuffer(slots * BYTES_PER_SLOT);
}

export class BusyRanges {
  readonly #bounds: Float64Array;
  readonly #releases: Int32Array;

  /** The number that nobody else uses. */
  readonly slot: number;

  /** @param slot a number that nobody else uses */
  constructor(memory: SharedArrayBuffer, slot: number) {
    const slots = memory.byteLength / BYTES_PER_SLOT;
    const boundsBytes = slots * DOUBLES_PER_SLOT * Float64Array.BYTES_PER_ELEMENT;
    this.#bounds = new Float64Array(memory, 0, slots * DOUBLES_PER_SLOT);
    this.#releases = new Int32Array(memory, boundsBytes, slots);
    this.slot = slot;
  }

  /** Claim a range; only under the exclusive lock, and if `findOverlap` found nothing. */
  claim(start: number, end: number): void {
    this.#bounds[this.slot * DOUBLES_PER_SLOT] = start;
    this.#bounds[this.slot * DOUBLES_PER_SLOT + 1] = end;
  }

  /** Give up this slot's range; only under the exclusive lock. */
  release(): void {
    this.claim(0, 0);
    Atomics.add(this.#releases, this.slot, 1);
    Atomics.notify(this.#releases, this.slot);
  }

  /**
   * A slot whose range overlaps, or -1; only under the exclusive lock.
   *
   * @param except a slot that does not count
   */
  findOverlap(start: number, end: number, except = -1): number {
    const bounds = this.#bounds;
    for (let at = 0; at < bounds.length; at += DOUBLES_PER_SLOT) {
      const otherStart = bounds[at] ?? 0;
      const otherEnd = bounds[at + 1] ?? 0;
      if (start >= otherEnd || otherStart >= end) continue;
      const slot = at / DOUBLES_PER_SLOT;
      if (slot !== except) return slot;
    }
    return -1;
  }

  /** What `waitForRelease` needs; read it under the exclusive lock. */
  releasesOf(slot: number): number {
    return Atomics.load(this.#releases, slot);
  }

  /** Wait until a slot's range is released; without the lock. */
  waitForRelease(slot: number, releases: number): void {
    Atomics.wait(this.#releases, slot, releases);
  }
}
