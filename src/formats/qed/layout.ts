/** Everything of a QED image that is checked and loaded once, at open: plain data for all threads. */

import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { createTableCache, type SharedTableCache } from "../../threads/table-cache.ts";
import type { BackingReference } from "../driver.ts";
import {
  FEATURE,
  HEADER_SIZE,
  type Header,
  QED_MAGIC,
  readHeader,
  tableEntries,
} from "./header.ts";

const TABLE_SLICE_SIZE = 4096;

export interface QedLayout {
  readonly format: "qed";
  readonly header: Header;
  readonly backingFile: BackingReference | undefined;
  /** Entries of an L1 or L2 table. */
  readonly tableEntries: number;
  /** The L1 table as it is on disk, as far as any disk can reach: at most 2 MiB. */
  readonly l1: SharedArrayBuffer;
  readonly tableCache: SharedTableCache;
}

/** True if `head` starts with the magic of QED. */
export function probeQed(head: Uint8Array): boolean {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  return head.length >= 4 && view.getUint32(0, true) === QED_MAGIC;
}

/**
 * Read and check the header and the L1 table.
 *
 * @param tableCacheMax bytes of the table cache, at the most
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function readQedLayout(storage: Storage, tableCacheMax: number): QedLayout {
  const head = NativeBuffer.allocate(HEADER_SIZE);
  storage.readAt(head, 0, HEADER_SIZE, 0);
  const header = readHeader(head.bytes, storage.length, storage.path);
  const entries = tableEntries(header);
  // The disk may grow; the table, which does not move, has room for that from the start.
  const l1Entries = Math.min(
    entries,
    Math.ceil(Number.MAX_SAFE_INTEGER / (header.cluster_size * entries)),
  );
  const l1 = new SharedArrayBuffer(l1Entries * 8);
  storage.readAt(new NativeBuffer(l1), 0, l1Entries * 8, header.l1_table_offset);
  const wanted = Math.ceil(header.image_size / header.cluster_size) * 8;
  return {
    format: "qed",
    header,
    backingFile: readBackingFile(header, storage),
    tableEntries: entries,
    l1,
    tableCache: createTableCache(TABLE_SLICE_SIZE, Math.min(tableCacheMax, wanted)),
  };
}

function readBackingFile(header: Header, storage: Storage): BackingReference | undefined {
  if ((header.features & FEATURE.backingFile) === 0n || header.backing_filename_size === 0)
    return undefined;
  const name = NativeBuffer.allocate(header.backing_filename_size);
  storage.readAt(name, 0, name.length, header.backing_filename_offset);
  const end = name.bytes.indexOf(0);
  const text = Buffer.from(end < 0 ? name.bytes : name.bytes.subarray(0, end)).toString();
  if (text === "") return undefined;
  return {
    name: text,
    // The only format that QED can state.
    format: (header.features & FEATURE.backingFormatNoProbe) !== 0n ? "raw" : undefined,
  };
}

/** What the image's own flags say of the state it was left in. */
export function conditionsOfQed({ header }: QedLayout): string[] {
  if ((header.features & FEATURE.needCheck) === 0n) return [];
  return ["was not closed cleanly (need-check bit); its data can be read all the same"];
}
