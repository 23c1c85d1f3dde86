/**
 * What a writer asks of a disk: whether a range reads as zeros. Under the lock of the image. Unlike block
 * status, this never asks the host how far its data goes, which takes long on some file systems.
 */

import { EXTENT, Extent, type FormatImage, NO_OFFSET } from "../formats/driver.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero } from "../syscalls/zeros.ts";
import type { BackingChain } from "./backing-chain.ts";

/** Bytes at both ends of a range that are looked at first: they tell most. */
const PEEK_SIZE = 4096;
/** Contents are read in pieces of this many bytes. */
const PIECE_SIZE = 65536;

export class ZeroLookup {
  readonly #chain: BackingChain;
  readonly #extent = new Extent();
  #piece: NativeBuffer | undefined;
  /** What `#knowAt` found: how far it holds, bytes. */
  #length = 0;
  /** It found zeros, or that only the contents tell. */
  #isZero = false;
  /** The zeros have a place on the host, or are data there: of the image itself. */
  #hasPlace = false;

  constructor(chain: BackingChain) {
    this.#chain = chain;
  }

  /** Whether a range reads as zeros for all that tables and the host say; data is not read. */
  readsAsZero(start: number, end: number): boolean {
    const last = Math.min(end, this.#chain.virtualSize);
    for (let offset = start; offset < last; offset += this.#length) {
      this.#knowAt(offset, last - offset);
      if (!this.#isZero) return false;
    }
    return true;
  }

  /**
   * Bytes from `start` on that read as zeros without a place on the host.
   *
   * @param withPlace those that have one count too
   */
  zerosAt(start: number, length: number, withPlace: boolean): number {
    this.#knowAt(start, length);
    return this.#isZero && (withPlace || !this.#hasPlace) ? this.#length : 0;
  }

  /** Whether all of a range but a part of it reads as zeros; data is read. */
  restIsZero(start: number, partStart: number, partEnd: number, end: number): boolean {
    return (
      this.#contentIsZero(Math.max(partEnd, end - PEEK_SIZE), end) &&
      this.#contentIsZero(start, Math.min(partStart, start + PEEK_SIZE)) &&
      this.#contentIsZero(partEnd, end) &&
      this.#contentIsZero(start, partStart)
    );
  }

  #contentIsZero(start: number, end: number): boolean {
    this.#piece ??= NativeBuffer.allocate(PIECE_SIZE);
    for (let offset = start; offset < end; offset += this.#length) {
      this.#knowAt(offset, Math.min(end - offset, PIECE_SIZE));
      if (this.#isZero) continue;
      this.#chain.read(offset, this.#length, this.#piece, 0);
      if (!isZero(this.#piece, 0, this.#length)) return false;
    }
    return true;
  }

  #knowAt(guestOffset: number, maxLength: number): void {
    const { images } = this.#chain;
    const extent = this.#extent;
    this.#length = maxLength;
    for (let depth = 0; depth < images.length; depth++) {
      const image = images[depth];
      if (image === undefined || guestOffset >= image.virtualSize) break;
      image.mapExtent(guestOffset, this.#length, extent);
      this.#length = extent.length;
      if (extent.kind === EXTENT.unallocated) continue;
      this.#isZero = extent.kind === EXTENT.zero || isHostHole(image, extent);
      this.#hasPlace = depth === 0 && extent.hostOffset !== NO_OFFSET;
      return;
    }
    this.#isZero = true;
    this.#hasPlace = false;
  }
}

/** Whether data is a hole of the host's file, where that is likely enough to ask. */
function isHostHole(image: FormatImage, extent: Extent): boolean {
  if (extent.kind !== EXTENT.data || !image.mayHaveHostHoles()) return false;
  return image.dataStorage.isHole(extent.hostOffset, extent.length);
}
