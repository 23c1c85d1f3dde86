/** The table of internal snapshots. Source: qcow2 specification, "Snapshots". */

import { type Field, sizeOf } from "../../binary/struct.ts";
import { FormatError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { decodeChecked } from "../decode-checked.ts";
import type { SnapshotInfo } from "../driver.ts";
import type { Header } from "./header.ts";

/** One entry: this, then the extra data, the id, the name, and padding to 8 bytes. */
// biome-ignore format: a table reads in columns
export const SNAPSHOT_ENTRY = [
  ["l1_table_offset",  0, "u64",    "host offset of the snapshot's L1 table"],
  ["l1_size",          8, "u32",    "its entries"],
  ["id_str_size",     12, "u16",    "bytes of the id"],
  ["name_size",       14, "u16",    "bytes of the name"],
  ["date_sec",        16, "u32",    "seconds since the epoch"],
  ["date_nsec",       20, "u32",    "nanoseconds of that second"],
  ["vm_clock_nsec",   24, "mask64", "guest clock, nanoseconds"],
  ["vm_state_size",   32, "u32",    "bytes of VM state, unless the extra data has it"],
  ["extra_data_size", 36, "u32",    "bytes of extra data"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const SNAPSHOT_EXTRA = [
  ["vm_state_size_large", 0, "u64",    "bytes of VM state"],
  ["disk_size",           8, "u64",    "virtual size at the time, bytes"],
  ["icount",             16, "mask64", "instruction count, all ones: none"],
] as const satisfies readonly Field[];

/** QEMU's limits, bytes. */
export const SNAPSHOT_TABLE_SIZE_MAX = 64 * 1024 * 1024;
export const SNAPSHOT_EXTRA_SIZE_MAX = 1024;
/** What QEMU keeps of an id and a name, bytes. */
const ID_MAX = 127;
export const SNAPSHOT_NAME_MAX = 255;
const SECTOR_SIZE = 512;
const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

/** The table is read in pieces of this many bytes; an entry has at most 40 + 1024 + 2 * 65535. */
const WINDOW_SIZE = 256 * 1024;

export interface Qcow2Snapshot extends Omit<SnapshotInfo, "number"> {
  /** Host offset, bytes. */
  readonly l1TableOffset: number;
  readonly l1Entries: number;
  /** Byte offset of its entry in the table. */
  readonly entryOffset: number;
  /** Bytes of its entry, padding included. */
  readonly entrySize: number;
}

/** Where the entries of a snapshot table are. */
export interface SnapshotTableIndex {
  /** Byte offset of each entry within the table: a Float64Array. */
  readonly offsets: SharedArrayBuffer;
  /** Bytes of the whole table. */
  readonly size: number;
}

/** What reading the table depends on. */
export interface SnapshotTableLocation {
  readonly header: Pick<Header, "nb_snapshots" | "snapshots_offset">;
  /** Bytes: of snapshots that do not say it. */
  readonly virtualSize: number;
}

/**
 * Check the whole table, which finds where each entry starts.
 *
 * @throws {FormatError} it is larger than QEMU's limits, or a number is impossible
 */
export function indexSnapshotTable(
  location: SnapshotTableLocation,
  storage: Storage,
): SnapshotTableIndex {
  const { nb_snapshots } = location.header;
  const memory = new SharedArrayBuffer(nb_snapshots * Float64Array.BYTES_PER_ELEMENT);
  const offsets = new Float64Array(memory);
  let index = 0;
  let size = 0;
  for (const { entryOffset, entrySize } of readSnapshotTable(location, storage)) {
    offsets[index++] = entryOffset;
    size = entryOffset + entrySize;
  }
  return { offsets: memory, size };
}

/**
 * Read the table, entry by entry.
 *
 * @param from the first entry to read, and where it starts in the table
 * @throws {FormatError} it is larger than QEMU's limits, or a number is impossible
 */
export function* readSnapshotTable(
  layout: SnapshotTableLocation,
  storage: Storage,
  from = { index: 0, offset: 0 },
): Generator<Qcow2Snapshot> {
  const { nb_snapshots, snapshots_offset } = layout.header;
  if (nb_snapshots === 0) return;
  const window = NativeBuffer.allocate(WINDOW_SIZE);
  let windowStart = 0;
  let windowLength = 0;
  let offset = from.offset;
  for (let index = from.index; index < nb_snapshots; index++) {
    const site = { offset: snapshots_offset + offset };
    const limited = (size: number): number => {
      if (offset + size > SNAPSHOT_TABLE_SIZE_MAX) {
        const reason = `snapshot table exceeds ${SNAPSHOT_TABLE_SIZE_MAX} bytes at entry ${index}`;
        throw new FormatError(storage.path, reason, site);
      }
      return size;
    };
    limited(sizeOf(SNAPSHOT_ENTRY));
    // Entries that fill less than half of the window are moved to its start by reading them again.
    if (windowLength === 0 || offset + WINDOW_SIZE / 2 > windowStart + windowLength) {
      windowStart = offset;
      windowLength = WINDOW_SIZE;
      storage.readAt(window, 0, windowLength, snapshots_offset + windowStart);
    }
    const at = offset - windowStart;
    const place = { path: storage.path, fileOffset: site.offset, what: `snapshot ${index}` };
    const entry = decodeChecked(SNAPSHOT_ENTRY, window.bytes, "be", { ...place, start: at });
    if (entry.extra_data_size > SNAPSHOT_EXTRA_SIZE_MAX) {
      const reason = `snapshot ${index} has ${entry.extra_data_size} bytes of extra data, the limit is ${SNAPSHOT_EXTRA_SIZE_MAX}`;
      throw new FormatError(storage.path, reason, site);
    }
    const extraAt = at + sizeOf(SNAPSHOT_ENTRY);
    const extra = decodeChecked(SNAPSHOT_EXTRA, window.bytes, "be", {
      ...place,
      start: extraAt,
      length: entry.extra_data_size,
    });
    const idAt = extraAt + entry.extra_data_size;
    const nameAt = idAt + entry.id_str_size;
    const size = limited(nameAt - at + entry.name_size);
    const diskSize =
      entry.extra_data_size >= sizeOf(SNAPSHOT_EXTRA, "disk_size")
        ? extra.disk_size
        : layout.virtualSize;
    yield {
      id: text(window.bytes, idAt, Math.min(entry.id_str_size, ID_MAX)),
      name: text(window.bytes, nameAt, Math.min(entry.name_size, SNAPSHOT_NAME_MAX)),
      vmStateSize:
        entry.extra_data_size >= sizeOf(SNAPSHOT_EXTRA, "vm_state_size_large")
          ? extra.vm_state_size_large
          : entry.vm_state_size,
      seconds: entry.date_sec,
      nanoseconds: entry.date_nsec,
      vmClock: entry.vm_clock_nsec,
      instructionCount:
        entry.extra_data_size >= sizeOf(SNAPSHOT_EXTRA, "icount") && extra.icount !== NO_ICOUNT
          ? extra.icount
          : undefined,
      virtualSize: diskSize - (diskSize % SECTOR_SIZE),
      l1TableOffset: entry.l1_table_offset,
      l1Entries: entry.l1_size,
      entryOffset: offset,
      entrySize: Math.ceil(size / 8) * 8,
    };
    offset += Math.ceil(size / 8) * 8;
  }
}

function text(bytes: Uint8Array, start: number, length: number): string {
  const name = bytes.subarray(start, start + length);
  const end = name.indexOf(0);
  return Buffer.from(end < 0 ? name : name.subarray(0, end)).toString();
}
