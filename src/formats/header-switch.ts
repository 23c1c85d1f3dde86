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
 * Write `wanted` over `current`, the start of the file, which `canSwitch` allows; both may be the same. What was
 * written to the file before is made durable, too.
 *
 * @param current as the host shows it
 * @param wanted as long as `current`
 * @throws {StorageError} the file starts with one or the other
 */
export function switchHeader(
  storage: WritableStorage,
  current: Uint8Array,
  wanted: Uint8Array,
): void {
  const buffer = NativeBuffer.allocate(wanted.length);
  buffer.bytes.set(wanted);
  // Also what is there already: a sync that failed may have dropped what the host shows.
  const end = usedEnd(current, wanted);
  if (end > SECTOR_SIZE) storage.writeAt(buffer, SECTOR_SIZE, end - SECTOR_SIZE, SECTOR_SIZE);
  storage.sync();
  storage.writeAt(buffer, 0, SECTOR_SIZE, 0);
  storage.sync();
}

/** The end of the last sector of which one of the two has anything. */
function usedEnd(current: Uint8Array, wanted: Uint8Array): number {
  let end = wanted.length;
  while (end > 0 && current[end - 1] === 0 && wanted[end - 1] === 0) end--;
  return Math.min(wanted.length, Math.ceil(end / SECTOR_SIZE) * SECTOR_SIZE);
}
