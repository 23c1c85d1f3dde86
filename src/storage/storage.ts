/** What image drivers need of the file (or block device) that an image lives in. */

import type { NativeBuffer } from "../syscalls/native-buffer.ts";

/** A run of a host file: either data, or a hole that reads as zeros. */
export interface HostRun {
  isData: boolean;
  /** Bytes, > 0. */
  length: number;
}

export interface Storage {
  /** The name that error messages use; for relative backing names, its directory counts. */
  readonly path: string;
  /** Bytes; of a block device, its capacity. */
  readonly length: number;
  /**
   * Read `length` bytes at `offset` into `target.bytes[start]` on. What lies past the end of the file
   * reads as zeros: the last cluster of an image may be cut short (FORMATS 1.9).
   *
   * @throws {StorageError} the read failed
   */
  readAt(target: NativeBuffer, start: number, length: number, offset: number): void;
  /** Bytes that the host has allocated for the file, now; of a block device, its length. */
  allocatedSize(): number;
  /**
   * Whether the host stores data at `offset`, and how far that holds. Without hole support: data.
   *
   * @param offset bytes, 0 <= offset < length
   * @param out overwritten; its length may reach past the end of the file
   */
  hostRun(offset: number, out: HostRun): void;
}
