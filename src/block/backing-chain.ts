/** Reading a disk: an image and what shows through it from the backing files below. */

import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import { DataReader } from "./data-extents.ts";

/** One image of a chain with the extent that its mapping writes to. */
interface Layer {
  readonly image: FormatImage;
  readonly data: DataReader;
  readonly extent: Extent;
}

/** 1: the image alone is the disk, what was below is not used any more. */
const DROPPED_WORD = 0;

/** Memory for what threads share of a chain that can become shorter. */
export function createChainState(): SharedArrayBuffer {
  return new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
}

/** A chain as one thread uses it. */
export class BackingChain {
  /** The top image, which the chain is named for. */
  readonly image: FormatImage;
  readonly #shared: Int32Array | undefined;
  #images: readonly FormatImage[];
  #layers: readonly Layer[];
  #generation = 0;

  /** @param shared of `createChainState`, if the chain can become shorter */
  constructor(images: readonly [FormatImage, ...FormatImage[]], shared?: SharedArrayBuffer) {
    this.image = images[0];
    this.#shared = shared && new Int32Array(shared);
    this.#images = images;
    this.#layers = images.map((image) => {
      return { image, data: new DataReader(image), extent: new Extent() };
    });
  }

  /** The image, its backing file, and so on. Not empty. */
  get images(): readonly FormatImage[] {
    return this.#images;
  }

  /** Bytes. */
  get virtualSize(): number {
    return this.image.virtualSize;
  }

  /** The disk as it was at an internal snapshot of the top image. */
  openSnapshot(number: number): BackingChain {
    return new BackingChain([this.image.openSnapshot(number), ...this.images.slice(1)]);
  }

  /** The image alone is the disk from now on, in all threads that `refresh`. Excluding all others. */
  dropBacking(): void {
    if (this.#shared !== undefined) Atomics.store(this.#shared, DROPPED_WORD, 1);
  }

  /** Take over what another thread has changed, if the generation is another one than the last. */
  refresh(generation: number): void {
    if (generation === this.#generation) return;
    this.#generation = generation;
    if (this.#shared === undefined || Atomics.load(this.#shared, DROPPED_WORD) === 0) return;
    this.#images = [this.image];
    this.#layers = this.#layers.slice(0, 1);
  }

  /**
   * Read `length` bytes at `guestOffset` into `target.bytes[start]` on.
   *
   * @param guestOffset bytes; guestOffset + length <= virtualSize
   * @throws {CorruptionError | StorageError} the target may be written in part
   */
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    this.#readLayer(0, guestOffset, length, target, start, false);
  }

  /**
   * As `read`, what the image itself has. Returns the bytes before the first one that it lacks; without a
   * backing file, it lacks none.
   */
  readOwn(guestOffset: number, length: number, target: NativeBuffer, start: number): number {
    return this.#readLayer(0, guestOffset, length, target, start, true);
  }

  /** As `read`, what is below the image itself. */
  readBelow(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    this.#readLayer(1, guestOffset, length, target, start, false);
  }

  /** @param stops at what the layer does not have: nothing is read from those below */
  #readLayer(
    depth: number,
    guestOffset: number,
    length: number,
    target: NativeBuffer,
    start: number,
    stops: boolean,
  ): number {
    const layer = this.#layers[depth];
    if (layer === undefined) {
      target.bytes.fill(0, start, start + length);
      return length;
    }
    const { image, data, extent } = layer;
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
          const at = done - runLength;
          data.read(target, start + at, runLength, runOffset, guestOffset + at);
          runLength = 0;
        }
        if (runLength === 0) runOffset = extent.hostOffset;
        runLength += count;
        done += count;
        continue;
      }
      if (runLength > 0) {
        const at = done - runLength;
        data.read(target, start + at, runLength, runOffset, guestOffset + at);
        runLength = 0;
      }
      if (stops && extent.kind === EXTENT.unallocated && this.#layers.length > 1) return done;
      this.#readOther(depth, guestOffset + done, count, target, start + done);
      done += count;
    }
    if (runLength > 0) {
      const at = done - runLength;
      data.read(target, start + at, runLength, runOffset, guestOffset + at);
    }
    return length;
  }

  /** Read what a layer has just mapped and what is not plain data. */
  #readOther(
    depth: number,
    guestOffset: number,
    length: number,
    target: NativeBuffer,
    start: number,
  ): void {
    const layer = this.#layers[depth];
    if (layer === undefined || layer.extent.kind === EXTENT.zero) {
      target.bytes.fill(0, start, start + length);
    } else if (layer.extent.kind === EXTENT.unallocated) {
      this.#readLayer(depth + 1, guestOffset, length, target, start, false);
    } else {
      const skip = guestOffset % layer.image.clusterSize;
      layer.image.readCompressed(layer.extent, target, start, skip, length);
    }
  }
}
