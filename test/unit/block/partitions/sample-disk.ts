/** A disk in memory, which refuses to be read outside its bounds. */

import type { PartitionedDisk } from "../../../../src/block/partitions/partition-entry.ts";

export const SECTOR = 512;

export function diskOf(bytes: Buffer): PartitionedDisk {
  return {
    size: bytes.length,
    read: (offset, length) => {
      if (!(offset >= 0 && length > 0 && offset + length <= bytes.length)) {
        throw new RangeError(`read of ${length} bytes at ${offset}`);
      }
      return bytes.subarray(offset, offset + length);
    },
  };
}
