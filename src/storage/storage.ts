/** What image drivers need of the file (or block device) that an image lives in. */

import type { NativeBuffer } from "../syscalls/native-buffer.ts";

/** A run of a host file: either data, or a hole that reads as zeros. */
export interface HostRun {
  isData: boolean;
  /** Bytes, > 0. */
  length: number;
}

/** What is done around each read of a file, which may take long. */
export interface ReadInterlude {
  /** False: nothing. */
  readonly isOn: boolean;
  before(): void;
  /** @throws what was read, or has failed, is void */
  after(): void;
}

/** Told whenever the host has answered a call that may take long. */
export interface CallProgress {
  advance(): void;
}

export interface Storage {
  /** The name that error messages use; for relative backing names, its directory counts. */
  readonly path: string;
  /** Bytes when it was opened; of a block device, its capacity. */
  readonly length: number;
  /** Bytes, now. */
  currentLength(): number;
  /**
   * Read `length` bytes at `offset` into `target.bytes[start]` on. What lies past the end of the file
   * reads as zeros: the last cluster of an image may be cut short.
   *
   * @throws {StorageError} the read failed
   */
  readAt(target: NativeBuffer, start: number, length: number, offset: number): void;
  /** Bytes that the host has allocated for the file, now; of a block device, its length. */
  allocatedSize(): number;
  /**
   * Whether the host stores data at `offset`, and how far that holds. Without hole support: data.
   * Past the end of the file: a hole.
   *
   * @param out overwritten
   */
  hostRun(offset: number, out: HostRun): void;
  /** Whether the host stores no data at all in a range: cheaper than `hostRun`. */
  isHole(offset: number, length: number): boolean;
}

/**
 * A file that is open for writing. Nothing is durable before `sync`; until then the host may store what
 * was written in any order.
 */
export interface WritableStorage extends Storage {
  /** False for block devices, and files of a fixed length: `setLength` cannot change them. */
  readonly resizable: boolean;
  /**
   * Write `length` bytes from `source.bytes[start]` on at `offset`; a file grows as needed.
   *
   * @throws {StorageError} ENOSPC, EIO, …; a part may have been written
   */
  writeAt(source: NativeBuffer, start: number, length: number, offset: number): void;
  /**
   * Let the host copy bytes of another file, without anybody reading them: file systems that can share blocks
   * copy none. Undefined: there is no such thing.
   *
   * @returns bytes from the start on that are copied; fewer than `length`, also 0, where the host cannot do
   *   it, or the source ends
   * @throws {StorageError} ENOSPC, EIO, …; a part may have been written
   */
  copyFrom?(source: Storage, sourceOffset: number, offset: number, length: number): number;
  /**
   * Make a range read as zeros. The length of the file stays; what lies past it is ignored.
   *
   * @param space "release" gives it back to the host where that can be done, "keep" does not
   * @throws {StorageError}
   */
  zeroAt(offset: number, length: number, space: "release" | "keep"): void;
  /**
   * Let the host allocate space for a range, whose contents stay; a file grows as needed. Where the
   * host cannot, nothing happens.
   *
   * @throws {StorageError} ENOSPC
   */
  preallocate(offset: number, length: number): void;
  /**
   * Cut the file, or extend it with zeros that take no space.
   *
   * @throws {StorageError}
   */
  setLength(length: number): void;
  /**
   * Make everything durable that was written before.
   *
   * @throws {StorageError} what was written since the last `sync` may be lost
   */
  sync(): void;
}
