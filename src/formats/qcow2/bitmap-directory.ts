/** The directory of persistent dirty bitmaps. Source: qcow2 specification, "Bitmaps". */

import { type Decoded, decode, encode, type Field, sizeOf } from "../../binary/struct.ts";
import { FormatError, hex } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { BitmapsExtension } from "./header-extensions.ts";

/** One entry: this, then the extra data, the name, and padding to 8 bytes. */
// biome-ignore format: a table reads in columns
export const BITMAP_ENTRY = [
  ["bitmap_table_offset", 0, "mask64", "host offset of the bitmap's table"],
  ["bitmap_table_size",   8, "u32",    "its entries"],
  ["flags",              12, "u32",    "bit 0 in use, bit 1 auto, bit 2 extra data compatible"],
  ["type",               16, "u8",     "1: dirty tracking"],
  ["granularity_bits",   17, "u8",     "a bit covers 1 << granularity_bits bytes"],
  ["name_size",          18, "u16",    "bytes of the name"],
  ["extra_data_size",    20, "u32",    "bytes of extra data"],
] as const satisfies readonly Field[];

export const BITMAP_FLAG = {
  /** Somebody writes to the image, or was killed: the bits are of no use. */
  inUse: 1,
  /** Enabled: whoever writes to the disk marks what he changes. */
  auto: 2,
} as const;
/** Dirty tracking: the only type that there is. */
export const TYPE_DIRTY_TRACKING = 1;
/** QEMU's limits of the granularity. */
export const TRACKED_GRANULARITY_BITS = { min: 9, max: 31 } as const;
/** The specification's limit: 63; QEMU accepts 9 to 31. */
const GRANULARITY_BITS_MAX = 63;
/** The specification's limit, bytes. */
export const NAME_SIZE_MAX = 1023;
/** QEMU's limit of a bitmap's table. */
const TABLE_ENTRIES_MAX = 2 ** 27;
/** Our limit, bytes: descriptions are made in memory, and real directories have a few hundred. */
export const DIRECTORY_SIZE_MAX = 16 * 1024 * 1024;

export interface BitmapInfo {
  readonly name: string;
  /** Bytes that one bit covers. */
  readonly granularity: number;
  readonly flags: readonly ("in-use" | "auto")[];
}

/** One entry as it is in the directory, and its name. */
export interface DirectoryEntry {
  readonly entry: Decoded<typeof BITMAP_ENTRY>;
  readonly name: Uint8Array;
  /** Bytes from the start of the directory on. */
  readonly at: number;
}

/** One entry, for who changes it. */
export interface BitmapEntry {
  readonly name: string;
  /** Host offset of the entry. */
  readonly at: number;
  /** Host offset of the table, a multiple of the cluster size. */
  readonly tableOffset: number;
  readonly tableEntries: number;
  /** As BITMAP_FLAG. */
  readonly flags: number;
  readonly granularityBits: number;
  /** The meaning of all that it has is known. */
  readonly isKnown: boolean;
  /** Bytes of the entry in the directory, with its padding. */
  readonly size: number;
}

/** An entry of a new bitmap, with its padding. */
export function encodeBitmapEntry(
  name: string,
  { offset, entries }: BitmapTable,
  { flags, granularityBits }: { readonly flags: number; readonly granularityBits: number },
): Buffer {
  const nameBytes = Buffer.from(name);
  const entry = Buffer.alloc(entrySize(nameBytes.length));
  const fields = {
    bitmap_table_offset: BigInt(offset),
    bitmap_table_size: entries,
    flags,
    type: TYPE_DIRTY_TRACKING,
    granularity_bits: granularityBits,
    name_size: nameBytes.length,
    extra_data_size: 0,
  };
  encode(BITMAP_ENTRY, fields, entry, "be");
  nameBytes.copy(entry, sizeOf(BITMAP_ENTRY));
  return entry;
}

/** Bytes of an entry with so many bytes of extra data and name. */
function entrySize(extra: number): number {
  return Math.ceil((sizeOf(BITMAP_ENTRY) + extra) / 8) * 8;
}

/** Where a bitmap's table is. */
export interface BitmapTable {
  /** Host offset, bytes. */
  readonly offset: number;
  readonly entries: number;
}

/**
 * Read the directory.
 *
 * @throws {FormatError} it is too large, or not as long as its entries
 */
export function readBitmapDirectory(extension: BitmapsExtension, storage: Storage): BitmapInfo[] {
  return readDirectoryEntries(extension, storage).map(({ entry, name }) => {
    const flags: ("in-use" | "auto")[] = [];
    if ((entry.flags & BITMAP_FLAG.inUse) !== 0) flags.push("in-use");
    if ((entry.flags & BITMAP_FLAG.auto) !== 0) flags.push("auto");
    return {
      name: Buffer.from(name).toString(),
      granularity: 2 ** entry.granularity_bits,
      flags,
    };
  });
}

/**
 * Where the tables of all bitmaps are.
 *
 * @param clusterSize bytes: tables start on its multiples
 * @throws {FormatError} as `readBitmapDirectory`; a table is too large, or at an impossible offset
 */
export function readBitmapTables(
  extension: BitmapsExtension,
  storage: Storage,
  clusterSize: number,
): BitmapTable[] {
  return readDirectoryEntries(extension, storage).map(({ entry }, index) => {
    const offset = entry.bitmap_table_offset;
    const entries = entry.bitmap_table_size;
    if (
      offset === 0n ||
      offset % BigInt(clusterSize) !== 0n ||
      offset > Number.MAX_SAFE_INTEGER ||
      entries === 0 ||
      entries > TABLE_ENTRIES_MAX
    ) {
      const reason = `bitmap ${index}: a table of ${entries} entries at ${hex(offset)} is impossible`;
      throw new FormatError(storage.path, reason, { offset: extension.directoryOffset });
    }
    return { offset: Number(offset), entries };
  });
}

/**
 * All bitmaps, with what it takes to change them.
 *
 * @throws {FormatError} as `readBitmapTables`
 */
export function readBitmapEntries(
  extension: BitmapsExtension,
  storage: Storage,
  clusterSize: number,
): BitmapEntry[] {
  const tables = readBitmapTables(extension, storage, clusterSize);
  return readDirectoryEntries(extension, storage).map(({ entry, name, at }, index) => {
    const { min, max } = TRACKED_GRANULARITY_BITS;
    const bits = entry.granularity_bits;
    const isKnown = entry.type === TYPE_DIRTY_TRACKING && bits >= min && bits <= max;
    const table = tables[index];
    return {
      name: Buffer.from(name).toString(),
      at: extension.directoryOffset + at,
      tableOffset: table?.offset ?? 0,
      tableEntries: table?.entries ?? 0,
      flags: entry.flags,
      granularityBits: bits,
      isKnown: isKnown && entry.extra_data_size === 0,
      size: entrySize(entry.extra_data_size + entry.name_size),
    };
  });
}

/** Whether the bits of a bitmap say what they are to say. */
export function isUsable({ flags, isKnown }: BitmapEntry): boolean {
  return isKnown && (flags & BITMAP_FLAG.inUse) === 0;
}

/** Whether who writes to the disk keeps a bitmap up. */
export function isTracked(entry: BitmapEntry): boolean {
  return isUsable(entry) && (entry.flags & BITMAP_FLAG.auto) !== 0;
}

/**
 * The directory as it is, checked as far as its form goes.
 *
 * @throws {FormatError} as `readBitmapDirectory`
 */
export function readDirectoryEntries(
  extension: BitmapsExtension,
  storage: Storage,
): DirectoryEntry[] {
  if (extension.directorySize > DIRECTORY_SIZE_MAX) {
    const reason = `the bitmap directory has ${extension.directorySize} bytes, the limit is ${DIRECTORY_SIZE_MAX}`;
    throw new FormatError(storage.path, reason, { offset: extension.directoryOffset });
  }
  const directory = NativeBuffer.allocate(extension.directorySize);
  storage.readAt(directory, 0, extension.directorySize, extension.directoryOffset);
  const entries: DirectoryEntry[] = [];
  let at = 0;
  for (let index = 0; index < extension.count; index++) {
    const left = extension.directorySize - at;
    const entry =
      left < sizeOf(BITMAP_ENTRY) ? undefined : decode(BITMAP_ENTRY, directory.bytes, "be", at);
    const size =
      entry === undefined ? 0 : sizeOf(BITMAP_ENTRY) + entry.extra_data_size + entry.name_size;
    if (
      entry === undefined ||
      size > left ||
      entry.granularity_bits > GRANULARITY_BITS_MAX ||
      entry.name_size > NAME_SIZE_MAX
    ) {
      throw new FormatError(storage.path, `bitmap directory entry ${index} is damaged`, {
        offset: extension.directoryOffset + at,
      });
    }
    const nameAt = at + sizeOf(BITMAP_ENTRY) + entry.extra_data_size;
    entries.push({ entry, name: directory.bytes.subarray(nameAt, nameAt + entry.name_size), at });
    at += Math.ceil(size / 8) * 8;
  }
  if (at !== extension.directorySize) {
    const reason = `the bitmap directory has ${extension.directorySize} bytes, and its ${extension.count} entries ${at}`;
    throw new FormatError(storage.path, reason, { offset: extension.directoryOffset });
  }
  return entries;
}
