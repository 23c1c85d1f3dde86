/** Block status through a backing chain: what `map` prints and what SEEK_DATA and SEEK_HOLE answer. */

import { EXTENT, Extent, type FormatImage, NO_OFFSET } from "../formats/driver.ts";
import type { HostRun } from "../storage/storage.ts";
import type { BackingChain } from "./backing-chain.ts";

/** The status of a run of guest bytes, in the words of qemu-img map. */
export class BlockStatus {
  /** Bytes, > 0. */
  length = 0;
  /** Which image decides: 0 is the top. */
  depth = 0;
  /** Some image says what is here, be it zeros. */
  present = false;
  zero = false;
  data = false;
  compressed = false;
  /** Where the bytes are in the image's data file, or NO_OFFSET. */
  hostOffset: number = NO_OFFSET;
}

/**
 * How many extents one seek looks at before it answers with what is always allowed: data here, no
 * hole before the end. A table that maps the same clusters again and again could hold a request up
 * for minutes otherwise. Bounds one answer to well under a second.
 */
const SEEK_EXTENTS_MAX = 2 ** 17;

export class BlockStatusWalker {
  readonly #chain: BackingChain;
  readonly #extent = new Extent();
  readonly #status = new BlockStatus();
  readonly #hostRun: HostRun = { isData: true, length: 0 };

  constructor(chain: BackingChain) {
    this.#chain = chain;
  }

  /**
   * The status at `guestOffset` and how far it holds; adjacent runs may be alike.
   *
   * @param guestOffset bytes, 0 <= guestOffset < virtualSize
   * @param maxLength bytes, > 0
   * @param out overwritten
   */
  statusAt(guestOffset: number, maxLength: number, out: BlockStatus): void {
    const { images } = this.#chain;
    const extent = this.#extent;
    let length = maxLength;
    for (let depth = 0; depth < images.length; depth++) {
      const image = images[depth];
      if (image === undefined) break;
      image.mapExtent(guestOffset, length, extent);
      length = extent.length;
      out.length = length;
      out.depth = depth;
      out.hostOffset = extent.hostOffset;
      out.compressed = extent.kind === EXTENT.compressed;
      out.present = extent.kind !== EXTENT.unallocated;
      out.zero = extent.kind === EXTENT.zero;
      out.data = out.present && !out.zero;
      if (extent.kind === EXTENT.data && image.mayHaveHostHoles())
        this.#lookForHostHole(image, out);
      // What lies there is not what the disk has.
      if (out.compressed || image.encrypted) out.hostOffset = NO_OFFSET;
      if (out.present) return;
      const below = images[depth + 1];
      if (below === undefined || guestOffset >= below.virtualSize) {
        out.zero = true;
        return;
      }
    }
  }

  /**
   * The first offset from `guestOffset` on where data is (SEEK_DATA), or where it reads as zeros
   * (SEEK_HOLE); the virtual size if there is none.
   *
   * @param guestOffset bytes, 0 <= guestOffset < virtualSize
   */
  seek(guestOffset: number, what: "data" | "hole"): number {
    const { virtualSize } = this.#chain;
    const status = this.#status;
    let offset = guestOffset;
    for (let extents = 0; offset < virtualSize; extents++) {
      if (extents >= SEEK_EXTENTS_MAX) return what === "data" ? offset : virtualSize;
      this.statusAt(offset, virtualSize - offset, status);
      if (status.zero === (what === "hole")) return offset;
      offset += status.length;
    }
    return virtualSize;
  }

  /** Clusters that were allocated ahead may be holes of the host file, which read as zeros. */
  #lookForHostHole(image: FormatImage, out: BlockStatus): void {
    const run = this.#hostRun;
    image.dataStorage.hostRun(out.hostOffset, run);
    out.length = Math.min(out.length, run.length);
    out.zero = !run.isData;
    // A raw file has nothing but the host's word for it.
    if (image.format === "raw") out.data = !out.zero;
  }
}
