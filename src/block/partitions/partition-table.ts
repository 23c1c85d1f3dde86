/** The partitions of a disk: finds out which table it has, and reads it. */

import { readDosTable } from "./dos.ts";
import { readGpt } from "./gpt.ts";
import type { PartitionedDisk, PartitionTable } from "./partition-entry.ts";

/**
 * Read the table of a disk. What it says is not trusted: ranges outside the disk are left out, or cut at
 * its end where Linux does so, counts are limited, and chains end.
 *
 * @throws {CorruptionError | StorageError} the disk cannot be read
 */
export function readPartitionTable(disk: PartitionedDisk): PartitionTable {
  const dos = readDosTable(disk);
  if (dos === undefined) return { kind: "none", sectorSize: 512, partitions: [] };
  if (dos.isProtective) return readGpt(disk);
  return { kind: "dos", sectorSize: 512, partitions: dos.partitions };
}
