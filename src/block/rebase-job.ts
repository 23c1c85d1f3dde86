/**
 * Rebasing: an image gets a copy of what would change if another file became its backing file, in steps, so
 * that who does it can stop in between. Until the header names the new backing file the disk stays the
 * same, and whoever was stopped does the rest without copying anything twice.
 */

import { EXTENT, Extent } from "../formats/driver.ts";
import { memcmp } from "../syscalls/libc.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero } from "../syscalls/zeros.ts";
import type { BackingChain } from "./backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "./block-status.ts";
import type { Disk } from "./disk.ts";
import { DiskJob } from "./disk-job.ts";

/** Both backing files are compared in pieces of this many bytes, or of a cluster. */
const PIECE_SIZE = 1024 * 1024;
/** A step compares about this many bytes. */
const STEP_COMPARED = 4 * 1024 * 1024;

export interface RebaseOptions {
  /** What is copied is stored compressed where it gets smaller. */
  readonly compress: boolean;
  /** Index in the chain of the disk of the new backing file; the number of images if it is not in it. */
  readonly shared: number;
}

export class RebaseJob extends DiskJob {
  readonly #disk: Disk;
  readonly #below: BackingChain | undefined;
  readonly #options: RebaseOptions;
  readonly #walker: BlockStatusWalker | undefined;
  readonly #clusterSize: number;
  readonly #pieceSize: number;
  readonly #old: NativeBuffer;
  readonly #new: NativeBuffer;
  readonly #status = new BlockStatus();
  readonly #newStatus = new BlockStatus();
  readonly #extent = new Extent();
  readonly total: number;
  #copied = 0;
  #compared = 0;

  /** @param below what is to show through from now on; undefined: nothing */
  constructor(disk: Disk, below: BackingChain | undefined, options: RebaseOptions) {
    super(STEP_COMPARED);
    this.#disk = disk;
    this.#below = below;
    this.#options = options;
    this.#walker = below && new BlockStatusWalker(below);
    this.#clusterSize = disk.chain.image.clusterSize;
    this.#pieceSize = Math.max(PIECE_SIZE, this.#clusterSize);
    this.#old = NativeBuffer.allocate(this.#pieceSize);
    this.#new = NativeBuffer.allocate(this.#pieceSize);
    this.total = disk.virtualSize;
  }

  /** Bytes that the image got. */
  get copied(): number {
    return this.#copied;
  }

  protected get effort(): number {
    return this.#compared;
  }

  protected override complete(): void {
    // Ending the disk would drop those that cannot be linked, and the backing files would be gone.
    this.#disk.backingCopies.link();
  }

  protected advance(guestOffset: number, maxLength: number): number {
    return this.#sameAt(guestOffset, maxLength) || this.#comparePiece(guestOffset);
  }

  /** Bytes from an offset on that stay the same for all that tables and the host say. */
  #sameAt(guestOffset: number, maxLength: number): number {
    const status = this.#status;
    this.#disk.statusAt(guestOffset, maxLength, status);
    if (status.present && status.depth === 0) return status.length;
    if (status.depth >= this.#options.shared) return status.length;
    if (!status.zero) return 0;
    return this.#newZerosAt(guestOffset, status.length);
  }

  #newZerosAt(guestOffset: number, maxLength: number): number {
    const size = this.#below?.virtualSize ?? 0;
    if (guestOffset >= size) return maxLength;
    const status = this.#newStatus;
    this.#walker?.statusAt(guestOffset, Math.min(maxLength, size - guestOffset), status);
    return status.zero ? status.length : 0;
  }

  /**
   * Compare what the disk shows with what it would show, cluster by cluster, and copy what differs. Returns the
   * bytes that are done.
   */
  #comparePiece(start: number): number {
    const size = this.#clusterSize;
    const limit = Math.min(this.total, start - (start % size) + this.#pieceSize);
    // What the image has stays, and is not read: parts of it may be damaged.
    const end = start + this.#missingAt(start, limit - start);
    if (end === start) return this.#extent.length;
    this.#disk.read(start, end - start, this.#old, 0);
    this.#readNew(start, end - start);
    let runStart = start;
    for (let at = start; at < end; ) {
      const next = Math.min(at - (at % size) + size, end);
      const from = at - start;
      if (memcmp(this.#old.address + from, this.#new.address + from, next - at) === 0) {
        this.#keep(runStart, at, start);
        runStart = next;
      }
      at = next;
    }
    this.#keep(runStart, end, start);
    this.#compared += end - start;
    return end - start;
  }

  /** Bytes from an offset on that the image has nothing for; if there are none, `#extent` says what it has. */
  #missingAt(guestOffset: number, length: number): number {
    const { image } = this.#disk.chain;
    const extent = this.#extent;
    for (let done = 0; done < length; done += extent.length) {
      this.#disk.inspect(() => image.mapExtent(guestOffset + done, length - done, extent));
      if (extent.kind !== EXTENT.unallocated) return done;
    }
    return length;
  }

  #readNew(guestOffset: number, length: number): void {
    const left = (this.#below?.virtualSize ?? 0) - guestOffset;
    const count = Math.max(0, Math.min(length, left));
    if (count > 0) this.#below?.read(guestOffset, count, this.#new, 0);
    this.#new.bytes.fill(0, count, length);
  }

  /** Let the image itself have a range, of which it may have parts. @param base where `#old` starts */
  #keep(start: number, end: number, base: number): void {
    const { image } = this.#disk.chain;
    const extent = this.#extent;
    for (let at = start; at < end; ) {
      this.#disk.inspect(() => image.mapExtent(at, end - at, extent));
      const { kind, length } = extent;
      if (kind === EXTENT.unallocated) {
        this.#store(at, length, at - base);
        this.#copied += length;
      }
      at += length;
    }
  }

  /** Store bytes of `#old` from `from` on, which the image lacks. */
  #store(guestOffset: number, length: number, from: number): void {
    if (isZero(this.#old, from, length)) this.#storeZeros(guestOffset, length);
    else if (this.#options.compress && this.#isWhole(guestOffset, length)) {
      this.#disk.writeCompressed(guestOffset, length, this.#old, from);
    } else {
      for (let done = 0; done < length; ) {
        done += this.#disk.backingCopies.copyMissing(guestOffset + done, length - done);
      }
    }
  }

  #storeZeros(guestOffset: number, length: number): void {
    this.#disk.writeZeroes(guestOffset, length, { unmap: true, explicit: true });
    const { image } = this.#disk.chain;
    const extent = this.#extent;
    for (let at = guestOffset; at < guestOffset + length; at += extent.length) {
      this.#disk.inspect(() => image.mapExtent(at, guestOffset + length - at, extent));
      if (extent.kind !== EXTENT.unallocated) continue;
      // Tables that know no zeros say nothing where nothing shows through so far.
      this.#disk.write(at, extent.length, NativeBuffer.allocate(extent.length), 0);
    }
  }

  #isWhole(guestOffset: number, length: number): boolean {
    const end = guestOffset + length;
    const isEnd = end % this.#clusterSize === 0 || end === this.total;
    return guestOffset % this.#clusterSize === 0 && isEnd;
  }
}
