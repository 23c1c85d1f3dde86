/** The snapshot table with an entry more, or one less: all others stay as they are, byte for byte. */

import { encode, sizeOf } from "../../../binary/struct.ts";
import { StorageError } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { SNAPSHOT_ENTRY, SNAPSHOT_EXTRA, SNAPSHOT_TABLE_SIZE_MAX } from "../snapshot-table.ts";
import type { SharedSnapshotTable } from "./shared-snapshot-table.ts";
import type { L1Place } from "./table-tree.ts";

/** Entries start at multiples of it, bytes. */
const ALIGNMENT = 8;
/** What qemu-img writes: no machine had run for the snapshot. */
const ICOUNT = 0n;

/** A table that is to be written. */
export interface NewSnapshotTable {
  /** As it is in the file. */
  readonly content: NativeBuffer;
  /** Byte offset of each entry. */
  readonly offsets: Float64Array;
  /** The number of each. */
  readonly numbers: Uint32Array;
}

/** What the entry of a new snapshot says. */
export interface NewEntry {
  readonly id: string;
  readonly name: string;
  readonly l1: L1Place;
  readonly seconds: number;
  readonly nanoseconds: number;
  /** Bytes. */
  readonly virtualSize: number;
}

const padded = (length: number): number => Math.ceil(length / ALIGNMENT) * ALIGNMENT;

/**
 * The table with an entry at its end.
 *
 * @throws {StorageError} EFBIG: it exceeds QEMU's limit
 */
export function withEntry(
  table: SharedSnapshotTable,
  storage: Storage,
  entry: NewEntry,
): NewSnapshotTable {
  const bytes = encodeEntry(entry);
  const start = padded(table.size);
  if (start + bytes.length > SNAPSHOT_TABLE_SIZE_MAX) {
    const reason = `its snapshot table would exceed ${SNAPSHOT_TABLE_SIZE_MAX} bytes`;
    throw new StorageError("EFBIG", storage.path, reason);
  }
  const content = NativeBuffer.allocate(start + bytes.length);
  storage.readAt(content, 0, table.size, table.offset);
  content.bytes.set(bytes, start);
  return {
    content,
    offsets: Float64Array.of(...table.entryOffsets(), start),
    numbers: Uint32Array.of(...table.numbers(), table.nextNumber),
  };
}

/** The table without the entry at a place. */
export function withoutEntry(
  table: SharedSnapshotTable,
  storage: Storage,
  index: number,
): NewSnapshotTable {
  const start = table.entryOffset(index);
  const isLast = index === table.count - 1;
  const end = isLast ? table.size : table.entryOffset(index + 1);
  const content = NativeBuffer.allocate(table.size - (end - start));
  storage.readAt(content, 0, start, table.offset);
  storage.readAt(content, start, table.size - end, table.offset + end);
  const isOther = (_: number, other: number): boolean => other !== index;
  return {
    content,
    offsets: table
      .entryOffsets()
      .filter(isOther)
      .map((offset) => (offset > start ? offset - (end - start) : offset)),
    numbers: table.numbers().filter(isOther),
  };
}

function encodeEntry({ id, name, l1, seconds, nanoseconds, virtualSize }: NewEntry): Uint8Array {
  const [idBytes, nameBytes] = [Buffer.from(id), Buffer.from(name)];
  const fixed = sizeOf(SNAPSHOT_ENTRY);
  const extra = sizeOf(SNAPSHOT_EXTRA);
  const bytes = new Uint8Array(padded(fixed + extra + idBytes.length + nameBytes.length));
  encode(
    SNAPSHOT_ENTRY,
    {
      l1_table_offset: l1.offset,
      l1_size: l1.entries,
      id_str_size: idBytes.length,
      name_size: nameBytes.length,
      date_sec: seconds,
      date_nsec: nanoseconds,
      extra_data_size: extra,
    },
    bytes,
    "be",
  );
  encode(SNAPSHOT_EXTRA, { disk_size: virtualSize, icount: ICOUNT }, bytes, "be", fixed);
  bytes.set(idBytes, fixed + extra);
  bytes.set(nameBytes, fixed + extra + idBytes.length);
  return bytes;
}
