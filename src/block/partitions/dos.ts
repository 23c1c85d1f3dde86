/**
 * The partition table of DOS, in the first sector of a disk (MBR), and the chain of further such sectors that
 * an extended partition begins with (EBR): each has one logical partition and says where the next one is.
 * Source: UEFI specification 2.10, 5.2 "LBA 0 Format", and for chains what block/partitions/msdos.c does.
 */

import { decode, type Field, sizeOf } from "../../binary/struct.ts";
import { PARTITIONS_MAX, type PartitionEntry, type PartitionedDisk } from "./partition-entry.ts";

const SECTOR_SIZE = 512;

// biome-ignore format: a table reads in columns
const BOOT_SECTOR = [
  ["disk_signature", 440, "u32", "0: none"],
  ["entries",        446, "u8",  "four of ENTRY"],
  ["signature",      510, "u16", "0xaa55"],
] as const satisfies readonly Field[];

const BOOT_SIGNATURE = 0xaa55;
const ENTRIES = 4;

// biome-ignore format: a table reads in columns
const ENTRY = [
  ["boot_indicator",  0, "u8",  "0x80: active, 0: not"],
  ["os_type",         4, "u8",  ""],
  ["starting_lba",    8, "u32", "of logical partitions, counted from their EBR"],
  ["size_in_lba",    12, "u32", "0: the entry is unused"],
] as const satisfies readonly Field[];
const ENTRIES_OFFSET = BOOT_SECTOR[1][1];
const ENTRY_SIZE = sizeOf(ENTRY);

const TYPE_GPT_PROTECTIVE = 0xee;
/** Extended partitions of DOS, Windows 95 and Linux. */
const TYPES_EXTENDED: ReadonlySet<number> = new Set([0x05, 0x0f, 0x85]);
const FIRST_LOGICAL = 5;

/** Sectors of a chain of EBRs that are looked at: the kernel's limit. */
const CHAIN_MAX = 100;

interface DosEntry {
  readonly type: number;
  /** Bytes. */
  readonly start: number;
  /** Bytes, > 0. */
  readonly size: number;
}

interface BootSector {
  readonly diskSignature: number;
  /** By their place; undefined: unused. */
  readonly entries: readonly (DosEntry | undefined)[];
}

export interface DosTable {
  /** There is, or was, a GPT: what stands here only keeps old programs off. */
  readonly isProtective: boolean;
  readonly partitions: readonly PartitionEntry[];
}

/** The table in the first sector, and all that it leads to; undefined: there is none. */
export function readDosTable(disk: PartitionedDisk): DosTable | undefined {
  const mbr = readBootSector(disk, 0);
  if (mbr === undefined) return undefined;
  if (mbr.entries.some((entry) => entry?.type === TYPE_GPT_PROTECTIVE)) {
    return { isProtective: true, partitions: [] };
  }
  const found: (DosEntry & { number: number })[] = [];
  let nextLogical = FIRST_LOGICAL;
  mbr.entries.forEach((entry, index) => {
    if (entry === undefined) return;
    if (!TYPES_EXTENDED.has(entry.type)) found.push({ ...entry, number: index + 1 });
    else
      for (const logical of logicalEntries(disk, entry)) {
        found.push({ ...logical, number: nextLogical++ });
      }
  });
  const partitions: PartitionEntry[] = [];
  for (const { number, type, start, size } of found) {
    if (start >= disk.size || number > PARTITIONS_MAX) continue;
    partitions.push({
      number,
      start,
      // Old firmware counts in cylinders, beyond the end: Linux cuts such partitions too.
      size: Math.min(size, disk.size - start),
      type: `0x${type.toString(16).padStart(2, "0")}`,
      uuid: partitionUuid(mbr.diskSignature, number),
      name: "",
    });
  }
  return { isProtective: false, partitions: partitions.sort((a, b) => a.number - b.number) };
}

/** Entries of a sector, counted from there; undefined: it is outside the disk, or no boot sector. */
function readBootSector(disk: PartitionedDisk, offset: number): BootSector | undefined {
  if (offset + SECTOR_SIZE > disk.size) return undefined;
  const bytes = disk.read(offset, SECTOR_SIZE);
  const { signature, disk_signature } = decode(BOOT_SECTOR, bytes, "le");
  if (signature !== BOOT_SIGNATURE) return undefined;
  const entries: (DosEntry | undefined)[] = [];
  for (let index = 0; index < ENTRIES; index++) {
    const entry = decode(ENTRY, bytes, "le", ENTRIES_OFFSET + index * ENTRY_SIZE);
    // The boot sector of a file system has its signature too, and code where the table would be.
    if (offset === 0 && (entry.boot_indicator & 0x7f) !== 0) return undefined;
    const size = entry.size_in_lba * SECTOR_SIZE;
    const start = entry.starting_lba * SECTOR_SIZE;
    entries.push(size > 0 ? { type: entry.os_type, start, size } : undefined);
  }
  return { diskSignature: disk_signature, entries };
}

/** The logical partitions of an extended one, in the order of their chain. */
function logicalEntries(disk: PartitionedDisk, extended: DosEntry): DosEntry[] {
  const found: DosEntry[] = [];
  const seen = new Set<number>();
  let offset = extended.start;
  let room = extended.size;
  while (seen.size < CHAIN_MAX && !seen.has(offset)) {
    seen.add(offset);
    const sector = readBootSector(disk, offset);
    if (sector === undefined) break;
    sector.entries.forEach((entry, index) => {
      if (entry === undefined || TYPES_EXTENDED.has(entry.type)) return;
      const start = offset + entry.start;
      const end = start + entry.size;
      // Some programs write the last two entries, and what they are worth is doubtful.
      const isWithin = entry.start + entry.size <= room && end <= extended.start + extended.size;
      if (index < 2 || isWithin) found.push({ ...entry, start });
    });
    const next = sector.entries.find((entry) => entry && TYPES_EXTENDED.has(entry.type));
    if (next === undefined) break;
    offset = extended.start + next.start;
    room = next.size;
  }
  return found;
}

/** `1234abcd-01`, as the kernel forms it. */
function partitionUuid(diskSignature: number, number: number): string | undefined {
  if (diskSignature === 0) return undefined;
  const disk = diskSignature.toString(16).padStart(8, "0");
  return `${disk}-${number.toString(16).padStart(2, "0")}`;
}
