/**
 * Working through a disk from its start to its end, in steps, so that who does it can stop, wait or look after
 * other things in between.
 */

/** A step looks at this many runs, each of so many bytes at the most. */
const STEP_LOOKS = 256;
const LOOK_MAX = 64 * 1024 * 1024;

export abstract class DiskJob {
  readonly #stepEffort: number;
  #done = 0;

  /** @param stepEffort a step ends when its `effort` has grown by this many bytes */
  constructor(stepEffort: number) {
    this.#stepEffort = stepEffort;
  }

  /** Bytes from the start of the disk on that are done. */
  get done(): number {
    return this.#done;
  }

  /** Bytes of the disk. */
  abstract get total(): number;

  /** Bytes that were copied. */
  abstract get copied(): number;

  /** Bytes that took time: what is passed over is none. */
  protected abstract get effort(): number;

  /** Called before each step. */
  protected prepare?(): void;

  /** Called when the end is reached, as the last part of a step. */
  protected complete?(): void;

  /**
   * Do the start of a range.
   *
   * @param stepLeft bytes of effort that are left of the step
   * @returns bytes that are done, > 0
   */
  protected abstract advance(guestOffset: number, maxLength: number, stepLeft: number): number;

  /**
   * Work on some megabytes, or find out about a part of the disk that it needs no work.
   *
   * @returns whether the end is reached
   * @throws {TsimgfsError} something cannot be read, or stored; it can be tried again
   */
  step(): boolean {
    this.prepare?.();
    const end = this.effort + this.#stepEffort;
    for (let looks = 0; looks < STEP_LOOKS && this.effort < end; looks++) {
      const length = Math.min(this.total - this.#done, LOOK_MAX);
      if (length <= 0) break;
      this.#done += this.advance(this.#done, length, end - this.effort);
    }
    if (this.#done < this.total) return false;
    this.complete?.();
    return true;
  }
}
