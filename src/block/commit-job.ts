/**
 * Committing: what an image and those between have above a base is copied into the base, in steps, so that
 * who does it can stop in between. Until that is durable nothing is taken out of the image, whose disk
 * stays the same: whoever was stopped does it again.
 */

import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { Disk } from "./disk.ts";

/** A step copies at most this many bytes. */
const STEP_COPIED = 4 * 1024 * 1024;
/** A step looks at this many runs, each of so many bytes at the most. */
const STEP_LOOKS = 256;
const LOOK_MAX = 64 * 1024 * 1024;

/** What the images above the base say about a run. */
type Above = "nothing" | "zeros" | "data";

export class CommitJob {
  readonly #above: Disk;
  readonly #base: Disk;
  readonly #extent = new Extent();
  readonly #buffer = NativeBuffer.allocate(STEP_COPIED);
  readonly #total: number;
  #done = 0;
  #copied = 0;

  /**
   * @param above the image and those between it and the base; what they do not have is not read
   * @param base written to; made longer if it is shorter than the image
   */
  constructor(above: Disk, base: Disk) {
    this.#above = above;
    this.#base = base;
    this.#total = above.virtualSize;
  }

  /** Bytes from the start of the disk on that are done. */
  get done(): number {
    return this.#done;
  }

  /** Bytes of the disk. */
  get total(): number {
    return this.#total;
  }

  /** Bytes of data that were copied. */
  get copied(): number {
    return this.#copied;
  }

  /**
   * Copy some megabytes, or find out about a part of the disk that they need not be.
   *
   * @returns whether the end is reached
   * @throws {TsimgfsError} the data cannot be read, or written; it can be tried again
   */
  step(): boolean {
    if (this.#base.virtualSize < this.#total) this.#base.resize(this.#total);
    const end = this.#copied + STEP_COPIED;
    for (let looks = 0; looks < STEP_LOOKS && this.#copied < end; looks++) {
      const left = Math.min(this.#total - this.#done, LOOK_MAX);
      if (left <= 0) return true;
      const above = this.#lookAt(this.#done, left);
      let { length } = this.#extent;
      if (above === "zeros") this.#base.writeZeroes(this.#done, length, { unmap: true });
      else if (above === "data") {
        length = Math.min(length, end - this.#copied);
        this.#above.read(this.#done, length, this.#buffer, 0);
        this.#base.write(this.#done, length, this.#buffer, 0);
        this.#copied += length;
      }
      this.#done += length;
    }
    return this.#done >= this.#total;
  }

  /** Who above the base decides about a byte; `#extent` says how far. */
  #lookAt(guestOffset: number, maxLength: number): Above {
    return this.#above.inspect(() =>
      this.#lookIn(this.#above.chain.images, guestOffset, maxLength),
    );
  }

  #lookIn(images: readonly FormatImage[], guestOffset: number, maxLength: number): Above {
    const extent = this.#extent;
    extent.length = maxLength;
    for (const image of images) {
      // A shorter image between hides what is below its end.
      if (guestOffset >= image.virtualSize) return "zeros";
      image.mapExtent(guestOffset, extent.length, extent);
      if (extent.kind === EXTENT.unallocated) continue;
      return extent.kind === EXTENT.zero ? "zeros" : "data";
    }
    return "nothing";
  }
}
