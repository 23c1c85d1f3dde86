/** Memory that JavaScript and system calls share: views of it and its address. */

import { koffi } from "./koffi.ts";

/** Alignment that O_DIRECT on any file system accepts, bytes. */
export const PAGE_SIZE = 4096;

/**
 * Bytes at a fixed address. `address + start` is the place of `bytes[start]`, so a system call reaches
 * any part without a new view. The memory lives as long as the object is referenced.
 */
export class NativeBuffer {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  readonly length: number;

  /** A buffer over memory that exists: an ArrayBuffer or a SharedArrayBuffer. */
  constructor(memory: ArrayBufferLike, byteOffset = 0, length = memory.byteLength - byteOffset) {
    this.bytes = new Uint8Array(memory, byteOffset, length);
    this.view = new DataView(memory, byteOffset, length);
    // User-space addresses have at most 57 bits, and Linux hands out at most 47 unless asked.
    this.address = length === 0 ? 0 : Number(koffi.address(this.bytes));
    this.length = length;
  }

  /**
   * New zeroed memory.
   *
   * @param length bytes
   * @param lead bytes before the first page boundary: `bytes[lead]` is page aligned
   */
  static allocate(length: number, lead = 0): NativeBuffer {
    const memory = new ArrayBuffer(length + 2 * PAGE_SIZE);
    const base = Number(koffi.address(new Uint8Array(memory)));
    const skip = (PAGE_SIZE - ((base + lead) % PAGE_SIZE)) % PAGE_SIZE;
    return new NativeBuffer(memory, skip, length);
  }
}
