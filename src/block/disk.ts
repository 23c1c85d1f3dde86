/** A disk as one thread uses it: an image with its backing files, read and, if it is open so, written. */

import assert from "node:assert";
import { UsageError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";
import type { BitmapEdit, Occupation } from "../formats/writer.ts";
import type { Storage } from "../storage/storage.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { BackingChain } from "./backing-chain.ts";
import { BackingCopies } from "./backing-copies.ts";
import { type BlockStatus, BlockStatusWalker } from "./block-status.ts";
import type { CompressedWrites } from "./compressed-writes.ts";
import type { CopyOnRead } from "./copy-on-read.ts";
import { deallocate } from "./deallocate.ts";
import type { GrowthPreallocation, ResizePieces } from "./disk-resizer.ts";
import type { DiskWriter } from "./disk-writer.ts";
import type { OffloadedWrites } from "./offloaded-writes.ts";
import type { PendingCopies } from "./pending-copies.ts";
import { SharedReads } from "./shared-reads.ts";
import { SnapshotAccess } from "./snapshot-access.ts";
import type { DiskSnapshots, SnapshotAction } from "./snapshots.ts";
import {
  assembleWriting,
  type DiskAccess,
  type DiskChanges,
  type DiskThread,
  type SharedWriting,
  type WritableFiles,
} from "./writing-parts.ts";
import type { ZeroFlags } from "./zero-manner.ts";
export class Disk {
  readonly chain: BackingChain;
  /** What it lacks is copied from its backing files through this. */
  readonly backingCopies: BackingCopies;
  readonly #access: DiskAccess | undefined;
  readonly #writer: DiskWriter | undefined;
  readonly #snapshots: DiskSnapshots | undefined;
  readonly #compressed: CompressedWrites | undefined;
  readonly #offloaded: OffloadedWrites | undefined;
  readonly #copies: PendingCopies | undefined;
  readonly #copier: CopyOnRead | undefined;
  readonly #copyOnRead: boolean;
  readonly #walker: BlockStatusWalker;

  private constructor(chain: BackingChain, access?: DiskAccess, changes?: DiskChanges) {
    this.chain = chain;
    this.#access = access;
    this.#writer = changes?.writer;
    this.#snapshots = changes?.snapshots;
    this.#compressed = changes?.compressed;
    this.#offloaded = changes?.offloaded;
    this.#copies = changes?.copies;
    this.#copier = changes?.copier;
    this.#copyOnRead = changes?.copyOnRead ?? false;
    this.backingCopies = new BackingCopies(this.#copier, access?.changes);
    this.#walker = new BlockStatusWalker(chain);
  }

  /** A disk that nobody writes to. */
  static readOnly(chain: BackingChain): Disk {
    return new Disk(chain);
  }

  /** A disk that this thread and others write to. */
  static writable(
    images: readonly [FormatImage, ...FormatImage[]],
    files: WritableFiles,
    shared: SharedWriting,
    thread: DiskThread,
  ): Disk {
    const { chain, access, changes } = assembleWriting(images, files, shared, thread);
    return new Disk(chain, access, changes);
  }

  /**
   * The disk as it was at an internal snapshot: only to read, while others may write to the image, and
   * delete the snapshot.
   *
   * @param number of FormatImage.readSnapshots
   * @throws {TsimgfsError} ESTALE: it was deleted
   */
  openSnapshot(number: number): Disk {
    const chain = this.inspect(() => this.chain.openSnapshot(number));
    if (this.#access === undefined) return new Disk(chain);
    const reading = new SnapshotAccess(this.#access.changes, this.chain.image, number);
    const reads = new SharedReads(reading, this.#access.unlocked);
    return new Disk(chain, { ...this.#access, reading, reads });
  }

  /**
   * Do something with an internal snapshot, as DiskSnapshots.change.
   *
   * @param name of the snapshot, or, to apply it, its id
   */
  changeSnapshots(action: SnapshotAction, name: string): void {
    this.#writable();
    this.#snapshots?.change(action, name);
  }

  /** Bytes. */
  get virtualSize(): number {
    return this.chain.image.virtualSize;
  }

  /** Changes whenever the structure of the image has: its size, its snapshots. */
  get generation(): number {
    return this.#access?.lock.generation ?? 0;
  }

  get isWritable(): boolean {
    return this.#writer !== undefined;
  }

  /**
   * Read `length` bytes at `guestOffset` into `target.bytes[start]` on.
   *
   * @param guestOffset bytes; guestOffset + length <= virtualSize
   * @throws {CorruptionError | StorageError} the target may be written in part
   */
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    this.readFirst(guestOffset, length, target, start);
    this.storeFetched();
  }

  /**
   * As `read`, for who has somebody waiting for the bytes: what was fetched from a backing file is not
   * stored yet. `storeFetched` does it, before the target is used for anything else; other threads may
   * wait for it.
   *
   * @returns whether there is something to store
   */
  readFirst(guestOffset: number, length: number, target: NativeBuffer, start: number): boolean {
    const access = this.#access;
    if (access === undefined) {
      this.chain.read(guestOffset, length, target, start);
      return false;
    }
    if (this.#copyOnRead && this.#copier !== undefined) {
      this.#copier.read(guestOffset, length, target, start);
      return this.#copier.hasFetched;
    }
    access.reads.read(this.chain, "all", guestOffset, length, target, start);
    return false;
  }

  /** Store what the last `readFirst` has fetched. A failure is counted, and is no failure of the disk. */
  storeFetched(): void {
    this.#copier?.store();
  }

  /**
   * Change the persistent bitmaps, durably, and after all that was written before. No other thread uses the
   * disk, and nothing is written after that: `close` follows.
   *
   * @throws {UsageError} an edit cannot be made, or the format has no bitmaps; no bitmap is changed
   */
  editBitmaps(edits: readonly BitmapEdit[]): void {
    const { formatWriter } = this.#access ?? {};
    if (formatWriter?.editBitmaps === undefined) {
      throw new UsageError(this.chain.image.storage.path, "only qcow2 has persistent bitmaps");
    }
    formatWriter.editBitmaps(edits);
  }

  /** Whether `writeCompressed` is possible. */
  get canCompress(): boolean {
    return this.#access?.formatWriter.compressed !== undefined;
  }

  /** Whether `deallocate` is possible. */
  get canDeallocate(): boolean {
    return this.#access?.formatWriter.deallocation !== undefined;
  }

  /**
   * Let the image have nothing of its own in the start of a range, so that its backing file shows.
   *
   * @param guestOffset a multiple of the cluster size; so is length, but at the end of the disk
   * @returns bytes that are done
   * @throws {CorruptionError | StorageError}
   */
  deallocate(guestOffset: number, length: number): number {
    const { formatWriter, changes } = this.#access ?? {};
    const deallocation = formatWriter?.deallocation;
    assert(deallocation !== undefined && changes !== undefined, "the format cannot deallocate");
    // Who calls this has seen to it that the backing file shows the same.
    formatWriter?.begin("places");
    return deallocate(deallocation, changes, guestOffset, length);
  }

  /**
   * Let the image alone be the disk, in all threads: it has all that its backing files have, whose files
   * may be closed then.
   *
   * @param unlink changes the header, durably, so that it names no backing file
   * @throws {TsimgfsError} the backing files are still those of the disk
   */
  dropBacking(unlink: () => void): void {
    this.#writable();
    this.#access?.changes.dropBacking(unlink);
  }

  /** Whether anything shows through from a backing file, now: another thread may have dropped it. */
  hasBacking(): boolean {
    return this.inspect(() => this.chain.images.length > 1);
  }

  /** What `look` makes of the chain, which stays as it is meanwhile, with all its files open. */
  inspect<T>(look: () => T): T {
    this.#access?.reading.lockShared();
    try {
      return look();
    } finally {
      this.#access?.reading.unlockShared();
    }
  }

  /** As BlockStatusWalker.seek. */
  seek(guestOffset: number, what: "data" | "hole"): number {
    const access = this.#access;
    if (access === undefined) return this.#walker.seek(guestOffset, what);
    access.reading.lockShared();
    try {
      return this.#walker.seek(guestOffset, what);
    } finally {
      access.reading.unlockShared();
    }
  }

  /** As BlockStatusWalker.statusAt. */
  statusAt(guestOffset: number, maxLength: number, out: BlockStatus): void {
    const access = this.#access;
    access?.reading.lockShared();
    try {
      this.#walker.statusAt(guestOffset, maxLength, out);
    } finally {
      access?.reading.unlockShared();
    }
  }

  /**
   * Write `length` bytes from `source.bytes[start]` on at `guestOffset`. When it returns, data and tables
   * are in the image's files, as far as the host's page cache.
   *
   * @param guestOffset bytes; guestOffset + length <= virtualSize
   * @throws {CorruptionError | StorageError} a part may have been written
   */
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    this.#writable().write(guestOffset, length, source, start);
  }

  /**
   * As `write` of bytes of another file of the host, which the host copies without anybody reading them.
   *
   * @param source a file that nobody writes to
   * @returns bytes from the start on that are done; what is left must be written
   * @throws {CorruptionError | StorageError} a part may have been written
   */
  copyFrom(guestOffset: number, length: number, source: Storage, sourceOffset: number): number {
    this.#writable();
    return this.#offloaded?.write(guestOffset, length, source, sourceOffset) ?? 0;
  }

  /**
   * As `write`, storing clusters compressed where they get smaller.
   *
   * @param guestOffset a multiple of the cluster size; so is length, but at the end of the disk
   * @throws {CorruptionError | StorageError} a part may have been written
   * @throws {TsimgfsError} ENOTSUP: the image cannot have compressed clusters; EINVAL: parts of clusters;
   *   EIO: a cluster is allocated already, those before it are written
   */
  writeCompressed(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    this.#writable();
    this.#compressed?.write(guestOffset, length, source, start);
  }

  /**
   * Make a range read as zeros, of any alignment: by tables where they can say it, else by writing zeros.
   *
   * @throws {CorruptionError | StorageError} a part may have been done
   * @throws {TsimgfsError} ENOTSUP with `noFallback`: zeros must be written; a part may have been done
   */
  writeZeroes(guestOffset: number, length: number, flags: ZeroFlags): void {
    this.#writable().writeZeroes(guestOffset, length, flags);
  }

  /**
   * Give every byte of a range a place on the host; what it reads as stays.
   *
   * @throws {CorruptionError | StorageError} a part may have been done
   */
  preallocate(guestOffset: number, length: number, how: Occupation = "falloc"): void {
    this.#writable().preallocate(guestOffset, length, how);
  }

  /**
   * Make durable what was written before.
   *
   * @throws {StorageError}
   */
  flush(): void {
    if (this.#copier?.tryToLink() === true) return;
    this.#access?.formatWriter.flush();
  }

  /** Bytes, now: another thread may have changed the size. */
  currentSize(): number {
    const access = this.#access;
    if (access === undefined) return this.virtualSize;
    access.reading.lockShared();
    try {
      return this.virtualSize;
    } finally {
      access.reading.unlockShared();
    }
  }

  /**
   * Change the size. What is new reads as zeros; what is cut off is lost.
   *
   * @param size bytes; rounded up to what the format can say
   * @param preallocation what the host gets of what is new
   * @throws {TsimgfsError} the format cannot have that size, or the host has no space
   */
  resize(size: number, preallocation: GrowthPreallocation = "off"): void {
    const pieces = this.resizeInPieces(size, preallocation);
    while (pieces.next().done !== true);
  }

  /**
   * As `resize`, in pieces that take about a tenth of a second at the most. Who stops between two of them calls
   * `return`: the disk keeps its size, and what was set aside is given back. Zeros that were made of what would have
   * been cut off stay.
   */
  resizeInPieces(size: number, preallocation: GrowthPreallocation): ResizePieces {
    return this.#writable().resize(size, preallocation);
  }

  /** Work that no request should wait for: prepare reservations, link copies, free what can be freed. */
  maintain(): void {
    if (this.#copies?.isMuch === true) this.#copier?.tryToLink();
    this.#access?.formatWriter.maintain();
  }

  /** Something waits for a `flush` and `maintain`: copies that are not linked, space that is not freed. */
  hasLateWork(): boolean {
    const hasCopies = this.#copies !== undefined && this.#copies.count > 0;
    return hasCopies || (this.#access?.formatWriter.hasFrees() ?? false);
  }

  /**
   * End writing: all is durable, nothing is reserved. No other thread uses the disk any more. The files
   * stay open.
   */
  close(): void {
    try {
      this.#copier?.tryToLink();
      this.#access?.changes.dropCopies();
    } finally {
      this.#access?.formatWriter.close();
    }
  }

  #writable(): DiskWriter {
    assert(this.#writer !== undefined, "the disk is read-only");
    // What this thread claims would be in its own way.
    this.#copier?.store();
    return this.#writer;
  }
}
