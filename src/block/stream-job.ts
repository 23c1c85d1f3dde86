/**
 * Streaming: an image gets all that it lacks from its backing files, in steps, so that who does it can stop,
 * wait or look after other things in between. Nothing is noted down anywhere: what was copied is in
 * the image, and whoever starts again passes over it without reading it.
 */

import type { Disk } from "./disk.ts";

/** A step ends when it has copied about this many bytes. */
const STEP_COPIED = 2 * 1024 * 1024;
/** A step looks at this many runs, each of so many bytes at the most. */
const STEP_LOOKS = 256;
const LOOK_MAX = 64 * 1024 * 1024;

export class StreamJob {
  readonly #disk: Disk;
  readonly #bottom: number;
  readonly #copiedBefore: number;
  #done = 0;
  #total: number;

  /** @param bottom index in the chain of the first image that is not copied from */
  constructor(disk: Disk, bottom: number) {
    this.#disk = disk;
    this.#bottom = bottom;
    this.#copiedBefore = disk.copied;
    this.#total = disk.currentSize();
  }

  /** Bytes from the start of the disk on that are done. */
  get done(): number {
    return this.#done;
  }

  /** Bytes of the disk. */
  get total(): number {
    return this.#total;
  }

  /** Bytes that were copied: those that the image lacked. */
  get copied(): number {
    return this.#disk.copied - this.#copiedBefore;
  }

  /**
   * Copy some megabytes, or find out about a part of the disk that they need not be.
   *
   * @returns whether the end is reached
   * @throws {TsimgfsError} what is to be copied cannot be read, or stored; it can be tried again
   */
  step(): boolean {
    const end = this.copied + STEP_COPIED;
    // Disks can grow meanwhile: what is new lacks nothing, and is looked at all the same.
    this.#total = this.#disk.currentSize();
    for (let looks = 0; looks < STEP_LOOKS && this.copied < end; looks++) {
      const length = Math.min(this.#total - this.#done, LOOK_MAX);
      if (length <= 0) return true;
      this.#done += this.#disk.copyFromBacking(this.#done, length, this.#bottom);
    }
    return this.#done >= this.#total;
  }
}
