/**
 * Copy-on-read (native-notes/writing.md): what an image lacks is read from its backing files, whole clusters, and
 * stored in the image, so that it is never read there again. Whoever reads is served first: what was
 * fetched is stored by `store`, when the reply is on its way. Until then the range is claimed, so a second
 * reader waits instead of fetching it too, and a writer comes after the copy, which his bytes replace.
 */

import assert from "node:assert";
import { TsimgfsError } from "../errors.ts";
import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import { ALLOCATION, type FormatWriter } from "../formats/writer.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { BackingChain } from "./backing-chain.ts";
import { CopyStore, type CopyStoreContext } from "./copy-store.ts";
import type { TableChanges } from "./table-changes.ts";

/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;
/** Scratch memory is made in multiples of this, bytes. */
const SCRATCH_UNIT = 1024 * 1024;
/** `copy` claims about this many bytes at once: who wants to write there waits that long. */
const COPY_MAX = 1024 * 1024;

export class CopyOnRead {
  readonly #chain: BackingChain;
  readonly #writer: FormatWriter;
  readonly #changes: TableChanges;
  readonly #copyStore: CopyStore;
  readonly #extent = new Extent();
  #scratch: NativeBuffer | undefined;

  /** What is claimed: bytes from `#from` up to `#to`, of whole units but for the end of the disk. */
  #from = 0;
  #to = 0;
  /** It was fetched and is to be stored: it is in `#source` from `#sourceStart` on. */
  #hasFetched = false;
  #source: NativeBuffer | undefined;
  #sourceStart = 0;
  #copied = 0;

  constructor(context: CopyStoreContext) {
    this.#chain = context.chain;
    this.#writer = context.writer;
    this.#changes = context.changes;
    this.#copyStore = new CopyStore(context);
  }

  /** Something was fetched that waits for `store`; its bytes may be in the target of the read. */
  get hasFetched(): boolean {
    return this.#hasFetched;
  }

  /**
   * Read as Disk.read. Before the target is used for something else, and before this thread does anything
   * else with the disk: `store`.
   *
   * @throws {CorruptionError | StorageError} what was asked for cannot be read
   */
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    try {
      this.#readPieces(guestOffset, length, target, start);
    } catch (error) {
      // Nobody calls `store` for a read that has failed, and the target is soon used for another one.
      this.store();
      throw error;
    }
  }

  #readPieces(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    let done = 0;
    for (let turns = 0; ; turns++) {
      assert(turns < TURNS_MAX, "a read comes to no end");
      done += this.#readOwn(guestOffset + done, length - done, target, start + done);
      if (done === length) return;
      this.store();
      done += this.#fetchFor(guestOffset + done, length - done, target, start + done);
    }
  }

  #readOwn(guestOffset: number, length: number, target: NativeBuffer, start: number): number {
    return this.#changes.reads.read(this.#chain, "own", guestOffset, length, target, start);
  }

  /** Read a start of a range that the image lacks. Returns its length; 0: look again. */
  #fetchFor(guestOffset: number, length: number, target: NativeBuffer, start: number): number {
    try {
      if (!this.#claim(guestOffset, length)) return 0;
    } catch (error) {
      // What waits could not be linked: it is read as if there were no copying.
      if (!(error instanceof TsimgfsError)) throw error;
      this.#copyStore.complain(error);
      this.#changes.read(guestOffset, length, target, start);
      return length;
    }
    const count = Math.min(this.#to - guestOffset, length);
    const isInside = this.#from === guestOffset && this.#to <= guestOffset + length;
    try {
      if (isInside) this.#fetch(target, start);
      else {
        const scratch = this.#scratchOf(this.#to - this.#from);
        this.#fetch(scratch, 0);
        const skip = guestOffset - this.#from;
        target.bytes.set(scratch.bytes.subarray(skip, skip + count), start);
      }
    } catch {
      // Perhaps only what was not asked for cannot be read.
      this.#changes.releaseCopy();
      this.#changes.read(guestOffset, length, target, start);
      return length;
    }
    return count;
  }

  /** Read what is claimed from below. */
  #fetch(target: NativeBuffer, start: number): void {
    this.#chain.readBelow(this.#from, this.#to - this.#from, target, start);
    this.#source = target;
    this.#sourceStart = start;
    this.#hasFetched = true;
  }

  /**
   * Claim whole clusters around the start of a range that the image lacks. Without the lock.
   *
   * @returns false: nothing is claimed, look again
   * @throws {TsimgfsError} copies that are in the way cannot be linked
   */
  #claim(guestOffset: number, length: number): boolean {
    this.#changes.lockExclusive();
    try {
      this.#findMissing(guestOffset, length);
      if (this.#to <= guestOffset) return false;
      if (!this.#changes.isBusy(this.#from, this.#to)) {
        this.#changes.claimCopy(this.#from, this.#to);
        return true;
      }
    } finally {
      this.#changes.unlockExclusive();
    }
    this.#changes.provide(ALLOCATION.inPlace);
    return false;
  }

  /** Set the bounds of what the image lacks around the start of a range. */
  #findMissing(guestOffset: number, length: number): void {
    const { unit, clusterSize } = this.#writer;
    const { virtualSize } = this.#chain;
    this.#to = guestOffset;
    // Another thread may just have cut it off.
    if (guestOffset >= virtualSize) return;
    const clusterStart = guestOffset - (guestOffset % clusterSize);
    let from = guestOffset - (guestOffset % unit);
    if (from > clusterStart && this.#missingEnd(clusterStart, from) === from) from = clusterStart;
    const wantedEnd = Math.ceil((guestOffset + length) / clusterSize) * clusterSize;
    this.#from = from;
    this.#to = this.#missingEnd(from, Math.min(wantedEnd, virtualSize));
  }

  /** How far, up to `limit`, the image has nothing from `start` on. */
  #missingEnd(start: number, limit: number): number {
    const extent = this.#extent;
    let end = start;
    while (end < limit) {
      this.#chain.image.mapExtent(end, limit - end, extent);
      if (extent.kind !== EXTENT.unallocated) break;
      end += extent.length;
    }
    return end;
  }

  /** Bytes that `copy` has copied so far. */
  get copied(): number {
    return this.#copied;
  }

  /**
   * Copy the start of a range from the images above `bottom` in the chain. Where nothing is below
   * `bottom`, what reads as zeros for all that tables and the host say is left out: it still will.
   *
   * @param bottom index of the first image that is not copied from
   * @returns bytes that are done: copied, or there before, or not to be copied
   * @throws {CorruptionError | StorageError} it cannot be read or stored
   */
  copy(guestOffset: number, length: number, bottom: number): number {
    this.store();
    for (let turns = 0; ; turns++) {
      assert(turns < TURNS_MAX, "a copy comes to no end");
      const skipped = this.#skip(guestOffset, length, bottom);
      if (skipped > 0) return skipped;
      const end = this.#copyClaimed(guestOffset, Math.min(length, this.#to - guestOffset));
      if (end > guestOffset) return Math.min(length, end - guestOffset);
    }
  }

  /**
   * Copy the start of a range that the image lacks, whatever is below: also zeros, so that the image says
   * itself what is there.
   *
   * @returns bytes that are done
   * @throws {CorruptionError | StorageError} it cannot be read or stored
   */
  copyMissing(guestOffset: number, length: number): number {
    this.store();
    for (let turns = 0; ; turns++) {
      assert(turns < TURNS_MAX, "a copy comes to no end");
      const end = this.#copyClaimed(guestOffset, length);
      if (end > guestOffset) return Math.min(length, end - guestOffset);
    }
  }

  /** Claim, fetch and store. Returns the end of what is done; `guestOffset`: look again. */
  #copyClaimed(guestOffset: number, length: number): number {
    if (!this.#claim(guestOffset, Math.min(length, COPY_MAX))) return guestOffset;
    const [start, end] = [this.#from, this.#to];
    try {
      const scratch = this.#scratchOf(end - start);
      this.#fetch(scratch, 0);
      this.#copyStore.store(start, end, scratch, 0);
      this.#copied += end - start;
    } finally {
      this.#hasFetched = false;
      this.#changes.releaseCopy();
    }
    return end;
  }

  /**
   * Bytes from `guestOffset` on, whole clusters, that need not be copied; 0: `#to` is the end of what must
   * be, at the most.
   */
  #skip(guestOffset: number, length: number, bottom: number): number {
    const { clusterSize } = this.#writer;
    this.#changes.lockShared();
    try {
      const end = Math.min(guestOffset + length, this.#chain.virtualSize);
      // Another thread may just have cut it off.
      if (end <= guestOffset) return length;
      const extent = this.#extent;
      this.#chain.image.mapExtent(guestOffset, end - guestOffset, extent);
      if (extent.kind !== EXTENT.unallocated) return extent.length;
      const missingEnd = guestOffset + extent.length;
      let at = guestOffset;
      while (at < missingEnd && !this.#mustCopy(at, missingEnd - at, bottom)) at += extent.length;
      // A cluster of which a part is to be copied is copied as a whole.
      const skipped = at >= missingEnd ? missingEnd : at - (at % clusterSize);
      if (skipped > guestOffset) return skipped - guestOffset;
      const far = Math.min(missingEnd, at + COPY_MAX);
      while (at < far && this.#mustCopy(at, missingEnd - at, bottom)) at += extent.length;
      this.#to = Math.min(Math.ceil(at / clusterSize) * clusterSize, end);
      return 0;
    } finally {
      this.#changes.unlockShared();
    }
  }

  /** Whether a byte must be copied from the images above `bottom`; `#extent` says how far. */
  #mustCopy(guestOffset: number, maxLength: number, bottom: number): boolean {
    const { images } = this.#chain;
    const extent = this.#extent;
    const hides = bottom < images.length;
    let length = maxLength;
    for (let depth = 1; depth < images.length; depth++) {
      const image = images[depth];
      if (image === undefined || depth >= bottom) break;
      if (guestOffset >= image.virtualSize) {
        // Zeros, which hide what is below.
        extent.length = length;
        return hides;
      }
      image.mapExtent(guestOffset, length, extent);
      if (extent.kind === EXTENT.zero) return hides;
      if (extent.kind !== EXTENT.unallocated) return hides || !this.#isHostHole(image);
      length = extent.length;
    }
    extent.length = length;
    return false;
  }

  /** Whether `#extent`, or the start of it that it then is cut to, is a hole of an image's file. */
  #isHostHole(image: FormatImage): boolean {
    const extent = this.#extent;
    if (extent.kind !== EXTENT.data || !image.mayHaveHostHoles()) return false;
    extent.length = Math.min(extent.length, COPY_MAX);
    return image.dataStorage.isHole(extent.hostOffset, extent.length);
  }

  /** Store what was fetched for a reader. A failure is counted, and told once. */
  store(): void {
    if (!this.#hasFetched) return;
    this.#hasFetched = false;
    assert(this.#source !== undefined);
    try {
      this.#copyStore.tryToStore(this.#from, this.#to, this.#source, this.#sourceStart);
    } finally {
      this.#changes.releaseCopy();
    }
  }

  /** As CopyStore.tryToLink. */
  tryToLink(): boolean {
    return this.#copyStore.tryToLink();
  }

  #scratchOf(length: number): NativeBuffer {
    if (this.#scratch === undefined || this.#scratch.length < length) {
      const size = Math.ceil(length / SCRATCH_UNIT) * SCRATCH_UNIT;
      this.#scratch = NativeBuffer.allocate(size);
    }
    return this.#scratch;
  }
}
