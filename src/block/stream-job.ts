/**
 * Streaming: an image gets all that it lacks from its backing files, in steps, so that who does it can stop,
 * wait or look after other things in between. Nothing is noted down anywhere: what was copied is in
 * the image, and whoever starts again passes over it without reading it.
 */

import type { Disk } from "./disk.ts";
import { DiskJob } from "./disk-job.ts";

/** A step ends when it has copied about this many bytes. */
const STEP_COPIED = 2 * 1024 * 1024;
export class StreamJob extends DiskJob {
  readonly #disk: Disk;
  readonly #bottom: number;
  readonly #copiedBefore: number;
  #total: number;

  /** @param bottom index in the chain of the first image that is not copied from */
  constructor(disk: Disk, bottom: number) {
    super(STEP_COPIED);
    this.#disk = disk;
    this.#bottom = bottom;
    this.#copiedBefore = disk.backingCopies.copied;
    this.#total = disk.currentSize();
  }

  get total(): number {
    return this.#total;
  }

  /** Bytes that were copied: those that the image lacked. */
  get copied(): number {
    return this.#disk.backingCopies.copied - this.#copiedBefore;
  }

  protected get effort(): number {
    return this.copied;
  }

  protected override complete(): void {
    // Ending the disk would drop those that cannot be linked, and the backing files would be gone.
    this.#disk.backingCopies.link();
  }

  protected override prepare(): void {
    // Disks can grow meanwhile: what is new lacks nothing, and is looked at all the same.
    this.#total = this.#disk.currentSize();
  }

  protected advance(guestOffset: number, maxLength: number): number {
    return this.#disk.backingCopies.copy(guestOffset, maxLength, this.#bottom);
  }
}
