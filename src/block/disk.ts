/** A disk as one thread uses it: an image with its backing files, read and, if it is open so, written. */

import assert from "node:assert";
import { attachWriter, type FormatWriting } from "../formats/formats.ts";
import type { FormatWriter } from "../formats/writer.ts";
import type { WritableStorage } from "../storage/storage.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import { AccessLock } from "../threads/access-lock.ts";
import { BusyRanges } from "../threads/busy-ranges.ts";
import type { BackingChain } from "./backing-chain.ts";
import { BlockStatusWalker } from "./block-status.ts";
import { DiskWriter } from "./disk-writer.ts";
import type { WritePolicy } from "./write-policy.ts";

/** What all threads that use a writable disk share: plain data for structured clone. */
export interface SharedWriting {
  readonly lock: SharedArrayBuffer;
  readonly busy: SharedArrayBuffer;
  readonly format: FormatWriting;
  readonly policy: WritePolicy;
  /** The first sector must not become that of an image of another format, nobody having stated this one. */
  readonly guardsMagic: boolean;
}

/** What one thread brings along to write. */
export interface DiskThread {
  /** A number that no other thread uses: its place in the locks. */
  readonly slot: number;
  /** Asks another thread to call `maintain`; undefined: nobody else does. */
  readonly requestMaintenance: (() => void) | undefined;
}

/** How a disk of an image that is written to is used: under its lock, and knowing what has changed. */
interface DiskAccess {
  readonly lock: AccessLock;
  readonly formatWriter: FormatWriter;
}

export class Disk {
  readonly chain: BackingChain;
  readonly #access: DiskAccess | undefined;
  readonly #writer: DiskWriter | undefined;
  readonly #walker: BlockStatusWalker;

  private constructor(chain: BackingChain, access?: DiskAccess, writer?: DiskWriter) {
    this.chain = chain;
    this.#access = access;
    this.#writer = writer;
    this.#walker = new BlockStatusWalker(chain);
  }

  /** A disk that nobody writes to. */
  static readOnly(chain: BackingChain): Disk {
    return new Disk(chain);
  }

  /** A disk that this thread and others write to. */
  static writable(
    chain: BackingChain,
    files: WritableFiles,
    shared: SharedWriting,
    thread: DiskThread,
  ): Disk {
    const lock = new AccessLock(shared.lock, thread.slot);
    const dataStorage = files.dataStorage ?? files.storage;
    const formatWriter = attachWriter(shared.format, chain.image, {
      storage: files.storage,
      dataStorage,
      lock,
      punches: shared.policy.discard === "unmap",
      requestMaintenance: thread.requestMaintenance,
    });
    const writer = new DiskWriter({
      chain,
      writer: formatWriter,
      dataStorage,
      lock,
      busy: new BusyRanges(shared.busy, thread.slot),
      policy: shared.policy,
      guardsMagic: shared.guardsMagic,
    });
    return new Disk(chain, { lock, formatWriter }, writer);
  }

  /** The disk as it was at an internal snapshot: only to read, while others may write to the image. */
  openSnapshot(index: number): Disk {
    return new Disk(this.chain.openSnapshot(index), this.#access);
  }

  /** Bytes. */
  get virtualSize(): number {
    return this.chain.image.virtualSize;
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
    const access = this.#access;
    if (access === undefined) {
      this.chain.read(guestOffset, length, target, start);
      return;
    }
    enter(access);
    try {
      this.chain.read(guestOffset, length, target, start);
    } finally {
      access.lock.unlockShared();
    }
  }

  /** As BlockStatusWalker.seek. */
  seek(guestOffset: number, what: "data" | "hole"): number {
    const access = this.#access;
    if (access === undefined) return this.#walker.seek(guestOffset, what);
    enter(access);
    try {
      return this.#walker.seek(guestOffset, what);
    } finally {
      access.lock.unlockShared();
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
   * Make a range read as zeros, of any alignment.
   *
   * @param unmap its space on the host is not needed any more; else it stays the disk's
   * @throws {CorruptionError | StorageError} a part may have been done
   */
  writeZeroes(guestOffset: number, length: number, { unmap }: { unmap: boolean }): void {
    this.#writable().writeZeroes(guestOffset, length, unmap);
  }

  /**
   * Give every byte of a range a place on the host; what it reads as stays.
   *
   * @throws {CorruptionError | StorageError} a part may have been done
   */
  preallocate(guestOffset: number, length: number): void {
    this.#writable().preallocate(guestOffset, length);
  }

  /**
   * Make durable what was written before.
   *
   * @throws {StorageError}
   */
  flush(): void {
    this.#access?.formatWriter.flush();
  }

  /** Bytes, now: another thread may have changed the size. */
  currentSize(): number {
    const access = this.#access;
    if (access === undefined) return this.virtualSize;
    enter(access);
    const size = this.virtualSize;
    access.lock.unlockShared();
    return size;
  }

  /**
   * Change the size. What is new reads as zeros; what is cut off is lost.
   *
   * @param size bytes; rounded up to what the format can say
   * @throws {TsimgfsError} the format cannot have that size, or the host has no space
   */
  resize(size: number): void {
    this.#writable().resize(size);
  }

  /** Work that no request should wait for: prepare reservations, free what can be freed. */
  maintain(): void {
    this.#access?.formatWriter.maintain();
  }

  /** Something waits for a `flush` and `maintain`: freed space, that is not given back before. */
  hasFrees(): boolean {
    return this.#access?.formatWriter.hasFrees() ?? false;
  }

  /**
   * End writing: all is durable, nothing is reserved. No other thread uses the disk any more. The files
   * stay open.
   */
  close(): void {
    this.#access?.formatWriter.close();
  }

  #writable(): DiskWriter {
    assert(this.#writer !== undefined, "the disk is read-only");
    return this.#writer;
  }
}

/** Share the lock, and know what other threads have changed. */
function enter({ lock, formatWriter }: DiskAccess): void {
  lock.lockShared();
  formatWriter.refresh(lock.generation);
}

/** The files of the image itself, open for writing. */
export interface WritableFiles {
  readonly storage: WritableStorage;
  readonly dataStorage: WritableStorage | undefined;
}
