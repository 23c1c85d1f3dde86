/** Everything of a qcow2 image that is checked and loaded once, at open: plain data for all threads. */

import { FormatError, hex, UnsupportedError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { createTableCache, type SharedTableCache } from "../../threads/table-cache.ts";
import type { BackingReference, DataFileReference } from "../driver.ts";
import { readBitmapDirectory } from "./bitmap-directory.ts";
import { AUTOCLEAR, INCOMPATIBLE } from "./features.ts";
import { backingReferenceOf, readFirstCluster } from "./first-cluster.ts";
import { checkHeader, type Geometry, type Header, QCOW2_MAGIC } from "./header.ts";
import type { HeaderExtensions } from "./header-extensions.ts";
import { indexSnapshotTable, type SnapshotTableIndex } from "./snapshot-table.ts";

/** L1 tables up to this many bytes are kept whole: those of 128 TiB with 64 KiB clusters. */
const L1_KEPT_MAX = 2 * 1024 * 1024;

/** Tables are cached in slices of this many bytes, or whole clusters where those are smaller. */
const TABLE_SLICE_MAX = 4096;

export interface Qcow2Layout extends Geometry {
  readonly format: "qcow2";
  readonly header: Header;
  readonly extensions: HeaderExtensions;
  readonly backingFile: BackingReference | undefined;
  readonly dataFile: DataFileReference | undefined;
  /** Entries of the active L1 table that map the disk; above them is VM state. */
  readonly l1Entries: number;
  /** These entries as they are on disk; undefined: too many to keep, they are cached like L2 tables. */
  readonly l1: SharedArrayBuffer | undefined;
  readonly tableCache: SharedTableCache;
  readonly snapshotTable: SnapshotTableIndex;
}

/** True if `head` starts with the magic of qcow2, of any version. */
export function probeQcow2(head: Uint8Array): boolean {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  return head.length >= 4 && view.getUint32(0) === QCOW2_MAGIC;
}

/**
 * Read and check the header, its extensions and the L1 table.
 *
 * @param tableCacheMax bytes of the table cache, at the most
 * @param keepsL1 the L1 table may be kept whole
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function readQcow2Layout(
  storage: Storage,
  { tableCacheMax, keepsL1 }: { tableCacheMax: number; keepsL1: boolean },
): Qcow2Layout {
  const path = storage.path;
  const firstCluster = readFirstCluster(storage);
  const { header, extensions, clusterSize } = firstCluster;
  const geometry = checkHeader(header, clusterSize, path);
  // As QEMU, an image with a damaged directory is refused; who wants the bitmaps reads them again.
  if (extensions.bitmaps !== undefined) readBitmapDirectory(extensions.bitmaps, storage);
  const l1Entries = Math.ceil(geometry.virtualSize / (geometry.clusterSize * geometry.l2Entries));
  return {
    ...geometry,
    format: "qcow2",
    header,
    extensions,
    backingFile: backingReferenceOf(firstCluster, path),
    dataFile: readDataFileReference(header, extensions, path),
    snapshotTable: indexSnapshotTable({ header, virtualSize: geometry.virtualSize }, storage),
    l1Entries,
    l1: readL1(storage, header, l1Entries, keepsL1),
    tableCache: createTableCache(
      Math.min(TABLE_SLICE_MAX, clusterSize),
      // The tables that map the whole disk, and some for refcounts and snapshots.
      Math.min(tableCacheMax, (geometry.virtualSize / clusterSize) * geometry.l2EntryBytes * 1.25),
    ),
  };
}

/**
 * Refuse incompatible features that are not known, by the names that the image has for them.
 *
 * @throws {UnsupportedError}
 */
export function readDataFileReference(
  header: Header,
  extensions: HeaderExtensions,
  path: string,
): DataFileReference | undefined {
  if ((header.incompatible_features & INCOMPATIBLE.externalDataFile) === 0n) return undefined;
  const name = extensions.dataFileName;
  if (name === undefined || name === "") {
    throw new UnsupportedError(path, "needs an external data file, but its header names none");
  }
  return { name, raw: (header.autoclear_features & AUTOCLEAR.rawExternalData) !== 0n };
}

function readL1(
  storage: Storage,
  header: Header,
  entries: number,
  keepsL1: boolean,
): SharedArrayBuffer | undefined {
  const offset = header.l1_table_offset;
  // Not the length that it was opened with: a table that has moved may lie behind that.
  const length = storage.currentLength();
  if (entries > 0 && offset >= length) {
    const reason = `L1 table offset ${hex(offset)} is past the end of the file, ${hex(length)}`;
    throw new FormatError(storage.path, reason, { offset });
  }
  if (!keepsL1 || entries * 8 > L1_KEPT_MAX) return undefined;
  const l1 = new SharedArrayBuffer(entries * 8);
  if (entries > 0) storage.readAt(new NativeBuffer(l1), 0, entries * 8, offset);
  return l1;
}

/** What the image's own flags say of the state it was left in. */
export function conditionsOfQcow2({ header }: Qcow2Layout): string[] {
  const conditions: string[] = [];
  if ((header.incompatible_features & INCOMPATIBLE.dirty) !== 0n) {
    conditions.push("was not closed cleanly (dirty bit); its data can be read all the same");
  }
  if ((header.incompatible_features & INCOMPATIBLE.corrupt) !== 0n) {
    conditions.push("is marked corrupt; what is damaged gives I/O errors");
  }
  return conditions;
}
