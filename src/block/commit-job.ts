/**
 * Committing: what an image and those between have above a base is copied into the base, in steps, so that
 * who does it can stop in between. Until that is durable nothing is taken out of the image, whose disk
 * stays the same: whoever was stopped does it again.
 */

import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { Disk } from "./disk.ts";
import { DiskJob } from "./disk-job.ts";

/** A step copies at most this many bytes. */
const STEP_COPIED = 4 * 1024 * 1024;

/** What the images above the base say about a run. */
type Above = "nothing" | "zeros" | "data";

export class CommitJob extends DiskJob {
  readonly #above: Disk;
  readonly #base: Disk;
  readonly #extent = new Extent();
  readonly #buffer = NativeBuffer.allocate(STEP_COPIED);
  readonly total: number;
  #copied = 0;

  /**
   * @param above the image and those between it and the base; what they do not have is not read
   * @param base written to; made longer if it is shorter than the image
   */
  constructor(above: Disk, base: Disk) {
    super(STEP_COPIED);
    this.#above = above;
    this.#base = base;
    this.total = above.virtualSize;
  }

  /** Bytes of data that were copied. */
  get copied(): number {
    return this.#copied;
  }

  protected get effort(): number {
    return this.#copied;
  }

  protected override prepare(): void {
    if (this.#base.virtualSize < this.total) this.#base.resize(this.total);
  }

  protected advance(guestOffset: number, maxLength: number, stepLeft: number): number {
    const above = this.#lookAt(guestOffset, maxLength);
    const { length } = this.#extent;
    if (above === "zeros") this.#base.writeZeroes(guestOffset, length, { unmap: true });
    if (above !== "data") return length;
    const count = Math.min(length, stepLeft);
    this.#above.read(guestOffset, count, this.#buffer, 0);
    this.#base.write(guestOffset, count, this.#buffer, 0);
    this.#copied += count;
    return count;
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
