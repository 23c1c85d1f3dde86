/**
 * Lays out qcow2 snapshot table entries byte by byte, so that a test can state any field wrong.
 *
 * Written from the qcow2 specification ("Snapshots"), without production code.
 */

import { type FieldValue, writeBe } from "./qcow2-header-builder.ts";
import type { Qcow2Cluster } from "./qcow2-tree-builder.ts";

/** The fixed part of a snapshot table entry: byte offset and size in bytes. Big-endian. */
// biome-ignore format: a table reads in columns
export const SNAPSHOT_FIELDS = {
  l1_table_offset: { offset: 0,  size: 8 },
  l1_size:         { offset: 8,  size: 4 },
  id_str_size:     { offset: 12, size: 2 },
  name_size:       { offset: 14, size: 2 },
  date_sec:        { offset: 16, size: 4 },
  date_nsec:       { offset: 20, size: 4 },
  vm_clock_nsec:   { offset: 24, size: 8 },
  vm_state_size:   { offset: 32, size: 4 },
  extra_data_size: { offset: 36, size: 4 },
} as const;

export type SnapshotField = keyof typeof SNAPSHOT_FIELDS;

/** A snapshot; everything left out is as QEMU writes it. */
export interface Qcow2Snapshot {
  readonly id?: string | Uint8Array | undefined;
  readonly name?: string | Uint8Array | undefined;
  /** The snapshot's own disk content; left out: shares all clusters with the active disk. */
  readonly clusters?: Readonly<Record<number, Qcow2Cluster>> | undefined;
  /** Disk size in the extra data; left out: the virtual size of the image. */
  readonly diskSize?: FieldValue | undefined;
  /** The extra data as it stands in the file; left out: VM state size, disk size, icount. */
  readonly extra?: Uint8Array | undefined;
  /** Written over the fixed part of the entry, last. */
  readonly fields?: { [F in SnapshotField]?: FieldValue | undefined } | undefined;
}

/** Where a snapshot's L1 table is. */
export interface SnapshotL1 {
  readonly offset: number;
  readonly entries: number;
}

/** One entry of the snapshot table, padded to 8 bytes. `index` gives the default id and name. */
export function encodeSnapshot(
  snapshot: Qcow2Snapshot,
  at: { readonly index: number; readonly l1: SnapshotL1; readonly virtualSize: FieldValue },
): Buffer {
  const id = Buffer.from(snapshot.id ?? String(at.index + 1));
  const name = Buffer.from(snapshot.name ?? `snapshot-${at.index + 1}`);
  const extra = snapshot.extra ?? encodeExtra(snapshot.diskSize ?? at.virtualSize);
  const length = 40 + extra.length + id.length + name.length;
  const bytes = Buffer.alloc(Math.ceil(length / 8) * 8);
  const fields: Record<SnapshotField, FieldValue> = {
    l1_table_offset: at.l1.offset,
    l1_size: at.l1.entries,
    id_str_size: id.length,
    name_size: name.length,
    date_sec: 1_700_000_000 + at.index,
    date_nsec: 123_000_000,
    vm_clock_nsec: 0,
    vm_state_size: 0,
    extra_data_size: extra.length,
  };
  for (const [field, value] of Object.entries({ ...fields, ...snapshot.fields })) {
    if (isSnapshotField(field) && value !== undefined) {
      writeBe(bytes, SNAPSHOT_FIELDS[field].offset, SNAPSHOT_FIELDS[field].size, value);
    }
  }
  Buffer.concat([extra, id, name]).copy(bytes, 40);
  return bytes;
}

function isSnapshotField(name: string): name is SnapshotField {
  return name in SNAPSHOT_FIELDS;
}

/** Extra data: 64-bit VM state size, disk size, icount (-1: none). */
function encodeExtra(diskSize: FieldValue): Buffer {
  const extra = Buffer.alloc(24);
  writeBe(extra, 8, 8, diskSize);
  writeBe(extra, 16, 8, -1);
  return extra;
}
