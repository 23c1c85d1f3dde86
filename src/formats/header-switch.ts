/**
 * Replacing what the start of a file says, so that at every instant it is the old header or the new one:
 * the first sector gets to the disk as a whole or not at all. What is new elsewhere is written before, where
 * the old header does not lead to.
 */

import type { WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { SECTOR_SIZE } from "./raw/create.ts";

/** Bytes of a file: from `start` on, before `end`. */
export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

/**
 * Whether `wanted` differs from `current` in the first sector and outside of some ranges only.
 *
 * @param wanted as long as `current`
 * @param inUse what the current first sector leads to
 */
export function canSwitch(
  current: Uint8Array,
  wanted: Uint8Array,
  inUse: readonly ByteRange[],
): boolean {
  return inUse.every(({ start, end }) => {
    const [from, to] = [Math.max(start, SECTOR_SIZE), Math.min(end, current.length)];
    return (
      from >= to || Buffer.compare(current.subarray(from, to), wanted.subarray(from, to)) === 0
    );
  });
}

/**
 * Write `wanted` over `current`, the start of the file, which `canSwitch` allows. What was written to the
 * file before is made durable, too.
 *
 * @throws {StorageError} the file starts with one or the other
 */
export function switchHeader(
  storage: WritableStorage,
  current: Uint8Array,
  wanted: Uint8Array,
): void {
  let [first, last] = [SECTOR_SIZE, wanted.length];
  while (first < last && current[first] === wanted[first]) first++;
  while (last > first && current[last - 1] === wanted[last - 1]) last--;
  const buffer = NativeBuffer.allocate(wanted.length);
  buffer.bytes.set(wanted);
  if (last > first) storage.writeAt(buffer, first, last - first, first);
  storage.sync();
  storage.writeAt(buffer, 0, SECTOR_SIZE, 0);
  storage.sync();
}
