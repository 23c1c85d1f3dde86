/** Reading a disk: an image and what shows through it from the backing files below. */

import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";

/** One image of a chain with the extent that its mapping writes to. */
interface Layer {
  readonly image: FormatImage;
  readonly extent: Extent;
}

/** A chain as one thread uses it. */
export class BackingChain {
  /** The top image, which the chain is named for. */
  readonly image: FormatImage;
  /** The image, its backing file, and so on. Not empty. */
  readonly images: readonly FormatImage[];
  readonly #layers: readonly Layer[];

  constructor(images: readonly [FormatImage, ...FormatImage[]]) {
    this.image = images[0];
    this.images = images;
    this.#layers = images.map((image) => ({ image, extent: new Extent() }));
  }

  /** Bytes. */
  get virtualSize(): number {
    return this.image.virtualSize;
  }

  /** The disk as it was at an internal snapshot of the top image. */
  openSnapshot(index: number): BackingChain {
    return new BackingChain([this.image.openSnapshot(index), ...this.images.slice(1)]);
  }

  /**
   * Read `length` bytes at `guestOffset` into `target.bytes[start]` on.
   *
   * @param guestOffset bytes; guestOffset + length <= virtualSize
   * @throws {CorruptionError | StorageError} the target may be written in part
   */
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    this.#readLayer(0, guestOffset, length, target, start);
  }

  #readLayer(
    depth: number,
    guestOffset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): void {
    const layer = this.#layers[depth];
    if (layer === undefined) {
      target.bytes.fill(0, start, start + length);
      return;
    }
    const { image, extent } = layer;
    // Beyond the end of a shorter backing file there are zeros.
    const available = Math.max(0, Math.min(length, image.virtualSize - guestOffset));
    if (available < length) target.bytes.fill(0, start + available, start + length);

    // Data that continues on the host is read in one go, also across table slices.
    let runOffset = 0;
    let runLength = 0;
    let done = 0;
    while (done < available) {
      image.mapExtent(guestOffset + done, available - done, extent);
      const count = extent.length;
      if (extent.kind === EXTENT.data) {
        if (runLength > 0 && extent.hostOffset !== runOffset + runLength) {
          image.dataStorage.readAt(target, start + done - runLength, runLength, runOffset);
          runLength = 0;
        }
        if (runLength === 0) runOffset = extent.hostOffset;
        runLength += count;
        done += count;
        continue;
      }
      if (runLength > 0) {
        image.dataStorage.readAt(target, start + done - runLength, runLength, runOffset);
        runLength = 0;
      }
      if (extent.kind === EXTENT.zero) {
        target.bytes.fill(0, start + done, start + done + count);
      } else if (extent.kind === EXTENT.unallocated) {
        this.#readLayer(depth + 1, guestOffset + done, count, target, start + done);
      } else {
        const skip = (guestOffset + done) % image.clusterSize;
        image.readCompressed(extent, target, start + done, skip, count);
      }
      done += count;
    }
    if (runLength > 0)
      image.dataStorage.readAt(target, start + done - runLength, runLength, runOffset);
  }
}
