/** How fast something is copied: limiting it, and measuring it. Times in ms, of any clock that goes forward. */

/** Rates are measured over this long, ms. */
const MEASURED_MS = 1000;

/** Keeps the bytes that are copied below a rate. */
export class RateLimit {
  /** Bytes a second; undefined: as fast as it goes. */
  rate: number | undefined;
  /** When the bytes copied so far are used up. */
  #paidAt = 0;

  constructor(rate: number | undefined) {
    this.rate = rate;
  }

  /**
   * How long to wait after a step. Time that was not used before it does not make later ones faster.
   *
   * @param bytes that the step has copied
   * @returns ms, 0 or more
   */
  pauseAfter(bytes: number, startMs: number, endMs: number): number {
    if (this.rate === undefined) return 0;
    this.#paidAt = Math.max(this.#paidAt, startMs) + (bytes / this.rate) * 1000;
    return Math.max(0, this.#paidAt - endMs);
  }
}

/** Measures the rate of a growing count of bytes. */
export class RateMeter {
  #sinceMs: number;
  #sinceBytes: number;
  #rate = 0;

  constructor(nowMs: number, bytes: number) {
    this.#sinceMs = nowMs;
    this.#sinceBytes = bytes;
  }

  /** Bytes a second of the last time that is long enough; before that, of what there is. */
  rateAt(nowMs: number, bytes: number): number {
    const elapsed = nowMs - this.#sinceMs;
    if (elapsed < MEASURED_MS && this.#rate > 0) return this.#rate;
    const rate = elapsed > 0 ? ((bytes - this.#sinceBytes) / elapsed) * 1000 : 0;
    if (elapsed < MEASURED_MS) return rate;
    this.#sinceMs = nowMs;
    this.#sinceBytes = bytes;
    this.#rate = rate;
    return rate;
  }
}
