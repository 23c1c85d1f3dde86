/**
 * The GUID partition table: a header in the second sector of a disk and an array of entries, both with a CRC,
 * and a copy of both at the end. Sectors have 512 or 4096 bytes, which nothing but the place of the header
 * tells. Source: UEFI specification 2.10, 5.3 "GUID Partition Table (GPT) Disk Layout".
 */

import { crc32 } from "node:zlib";
import { decode, type Field, offsetOf, sizeOf } from "../../binary/struct.ts";
import {
  PARTITIONS_MAX,
  type PartitionEntry,
  type PartitionedDisk,
  type PartitionTable,
} from "./partition-entry.ts";

const SECTOR_SIZES = [512, 4096] as const;

// biome-ignore format: a table reads in columns
const HEADER = [
  ["signature",                    0, "mask64", "\"EFI PART\""],
  ["revision",                     8, "u32",    "1.0"],
  ["header_size",                 12, "u32",    "bytes that the CRC is of: 92 to the sector's size"],
  ["header_crc32",                16, "u32",    "with this field as 0"],
  ["my_lba",                      24, "mask64", "where the header is"],
  ["alternate_lba",               32, "mask64", "where the other one is"],
  ["first_usable_lba",            40, "mask64", ""],
  ["last_usable_lba",             48, "mask64", ""],
  ["partition_entry_lba",         72, "mask64", "where the array starts"],
  ["number_of_partition_entries", 80, "u32",    ""],
  ["size_of_partition_entry",     84, "u32",    "bytes: 128 times a power of two"],
  ["partition_entry_array_crc32", 88, "u32",    ""],
] as const satisfies readonly Field[];
const HEADER_SIZE_MIN = sizeOf(HEADER);
const HEADER_CRC_AT = offsetOf(HEADER, "header_crc32");
const SIGNATURE = 0x5452_4150_2049_4645n;

// biome-ignore format: a table reads in columns
const ENTRY = [
  ["type_hi",       0, "mask64", "GUID of the type; all zeros: the entry is unused"],
  ["type_lo",       8, "mask64", ""],
  ["unique_hi",    16, "mask64", "GUID of the partition"],
  ["unique_lo",    24, "mask64", ""],
  ["starting_lba", 32, "mask64", ""],
  ["ending_lba",   40, "mask64", "the last sector of it"],
  ["attributes",   48, "mask64", ""],
  ["name_start",   56, "u8",     "36 units of UTF-16, up to a zero"],
] as const satisfies readonly Field[];
const ENTRY_SIZE_MIN = 128;
const NAME_AT = offsetOf(ENTRY, "name_start");
const NAME_SIZE = 72;
const TYPE_AT = offsetOf(ENTRY, "type_hi");
const UNIQUE_AT = offsetOf(ENTRY, "unique_hi");

/** Bytes of an array that are looked at; the usual one has 16 KiB. Ours. */
const ARRAY_MAX = 1024 * 1024;

interface Gpt {
  readonly sectorSize: number;
  /** undefined: the CRC of the array is wrong, or its place. */
  readonly partitions: readonly PartitionEntry[] | undefined;
  /** Bytes: where the other header is said to be. */
  readonly alternate: number;
}

/** The table of a disk whose first sector says that there is one. */
export function readGpt(disk: PartitionedDisk): PartitionTable {
  const primaries = SECTOR_SIZES.map((size) => readCopy(disk, size, size));
  for (const primary of primaries) {
    if (primary?.partitions === undefined) continue;
    const { sectorSize, partitions } = primary;
    return { kind: "gpt", sectorSize, partitions };
  }
  const backups = [
    ...primaries.map((primary) => primary && readCopy(disk, primary.sectorSize, primary.alternate)),
    ...SECTOR_SIZES.map((size) => readCopy(disk, size, (Math.floor(disk.size / size) - 1) * size)),
  ];
  for (const backup of backups) {
    if (backup?.partitions === undefined) continue;
    const { sectorSize, partitions } = backup;
    return { kind: "gpt-backup", sectorSize, partitions };
  }
  return { kind: "gpt-damaged", sectorSize: SECTOR_SIZES[0], partitions: [] };
}

/** The copy whose header is at `offset`; undefined: no valid header is there. */
function readCopy(disk: PartitionedDisk, sectorSize: number, offset: number): Gpt | undefined {
  if (!(offset >= sectorSize && offset + sectorSize <= disk.size)) return undefined;
  // A copy: the array is read into the same memory.
  const bytes = Uint8Array.from(disk.read(offset, sectorSize));
  const header = decode(HEADER, bytes, "le");
  const size = header.header_size;
  if (header.signature !== SIGNATURE || size < HEADER_SIZE_MIN || size > sectorSize) {
    return undefined;
  }
  bytes.fill(0, HEADER_CRC_AT, HEADER_CRC_AT + 4);
  if (crc32(bytes.subarray(0, size)) !== header.header_crc32) return undefined;
  const toOffset = (lba: bigint): number => Number(lba) * sectorSize;
  if (toOffset(header.my_lba) !== offset) return undefined;
  const entrySize = header.size_of_partition_entry;
  const array = readArray(disk, {
    offset: toOffset(header.partition_entry_lba),
    size: header.number_of_partition_entries * entrySize,
    crc: header.partition_entry_array_crc32,
  });
  const isEntrySize = entrySize >= ENTRY_SIZE_MIN && entrySize % ENTRY_SIZE_MIN === 0;
  const partitions =
    array && isEntrySize ? readEntries(array, entrySize, sectorSize, disk.size) : undefined;
  return { sectorSize, partitions, alternate: toOffset(header.alternate_lba) };
}

function readArray(
  disk: PartitionedDisk,
  { offset, size, crc }: { offset: number; size: number; crc: number },
): Uint8Array | undefined {
  if (size === 0 || size > ARRAY_MAX || !(offset + size <= disk.size)) return undefined;
  const array = disk.read(offset, size);
  return crc32(array) === crc ? array : undefined;
}

function readEntries(
  array: Uint8Array,
  entrySize: number,
  sectorSize: number,
  diskSize: number,
): PartitionEntry[] {
  const partitions: PartitionEntry[] = [];
  const count = Math.min(array.length / entrySize, PARTITIONS_MAX);
  for (let index = 0; index < count; index++) {
    const at = index * entrySize;
    const entry = decode(ENTRY, array, "le", at);
    if (entry.type_hi === 0n && entry.type_lo === 0n) continue;
    const start = Number(entry.starting_lba) * sectorSize;
    const end = (Number(entry.ending_lba) + 1) * sectorSize;
    if (!(start < end && end <= diskSize)) continue;
    partitions.push({
      number: index + 1,
      start,
      size: end - start,
      type: guidText(array.subarray(at + TYPE_AT)),
      uuid: guidText(array.subarray(at + UNIQUE_AT)).toLowerCase(),
      name: nameText(array.subarray(at + NAME_AT, at + NAME_AT + NAME_SIZE)),
    });
  }
  return partitions;
}

/** The first three groups are little-endian numbers; upper case, as sfdisk prints types. */
function guidText(bytes: Uint8Array): string {
  const hex = (from: number, to: number, order: 1 | -1): string => {
    const part = [...bytes.subarray(from, to)].map((byte) => byte.toString(16).padStart(2, "0"));
    return (order < 0 ? part.reverse() : part).join("");
  };
  const groups = [hex(0, 4, -1), hex(4, 6, -1), hex(6, 8, -1), hex(8, 10, 1), hex(10, 16, 1)];
  return groups.join("-").toUpperCase();
}

function nameText(bytes: Uint8Array): string {
  const text = Buffer.from(bytes).toString("utf16le");
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}
