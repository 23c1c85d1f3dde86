/** A file that exists only in memory: images laid out by hand, with reads that can be counted and failed. */

import { StorageError } from "../../src/errors.ts";
import type { HostRun, Storage } from "../../src/storage/storage.ts";
import type { NativeBuffer } from "../../src/syscalls/native-buffer.ts";

/** One call of `readAt`. */
export interface StorageRead {
  readonly offset: number;
  readonly length: number;
}

export class MemoryStorage implements Storage {
  readonly path: string;
  readonly bytes: Uint8Array;
  readonly length: number;
  /** Every read so far. */
  readonly reads: StorageRead[] = [];
  /** What `allocatedSize` answers, bytes. */
  allocated: number;
  /** Holes of the file: [first byte, byte after the last). */
  holes: readonly (readonly [start: number, end: number])[] = [];
  /** The next reads fail after they have overwritten a part of their target. */
  failing = false;

  constructor(path: string, bytes: Uint8Array) {
    this.path = path;
    this.bytes = bytes;
    this.length = bytes.length;
    this.allocated = bytes.length;
  }

  readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    this.reads.push({ offset, length });
    if (this.failing) {
      target.bytes.fill(0xee, start, start + length);
      throw new StorageError("EIO", this.path, `read at offset ${offset} failed`, { offset });
    }
    target.bytes.fill(0, start, start + length);
    target.bytes.set(this.bytes.subarray(offset, offset + length), start);
  }

  currentLength(): number {
    return this.bytes.length;
  }

  allocatedSize(): number {
    return this.allocated;
  }

  isHole(offset: number, length: number): boolean {
    const run: HostRun = { isData: true, length: 0 };
    this.hostRun(offset, run);
    return !run.isData && run.length >= length;
  }

  hostRun(offset: number, out: HostRun): void {
    const isHole = (at: number): boolean =>
      this.holes.some(([start, end]) => start <= at && at < end);
    if (offset >= this.length) {
      out.isData = false;
      out.length = Number.MAX_SAFE_INTEGER - offset;
      return;
    }
    out.isData = !isHole(offset);
    let end = offset + 1;
    while (end < this.length && isHole(end) === isHole(offset)) end++;
    out.length = end - offset;
  }
}
