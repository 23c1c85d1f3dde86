/** A block of zeros, to write and to compare with. */

import { memcmp } from "./libc.ts";
import { NativeBuffer } from "./native-buffer.ts";

/** Bytes of zeros that there are. */
export const ZEROS_SIZE = 64 * 1024;

export const ZEROS = NativeBuffer.allocate(ZEROS_SIZE);

/** Whether `length` bytes from `buffer.bytes[start]` on are zeros; soon if the first ones are not. */
export function isZero(buffer: NativeBuffer, start: number, length: number): boolean {
  const { bytes } = buffer;
  if (length === 0) return true;
  if (bytes[start] !== 0 || bytes[start + length - 1] !== 0) return false;
  for (let done = 0; done < length; done += ZEROS_SIZE) {
    const count = Math.min(length - done, ZEROS_SIZE);
    if (memcmp(buffer.address + start + done, ZEROS.address, count) !== 0) return false;
  }
  return true;
}
