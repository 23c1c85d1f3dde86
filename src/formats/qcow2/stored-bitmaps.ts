/** The persistent bitmaps of an image that nobody writes to: which there are, and what they say. */

import { UsageError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import type { BitmapContents, StoredBitmap } from "../writer.ts";
import { bitmapBytes, loadBits } from "./bitmap-bits.ts";
import { BITMAP_FLAG, type BitmapEntry, isUsable, readBitmapEntries } from "./bitmap-directory.ts";
import type { Qcow2Layout } from "./layout.ts";
import { BITMAP_MEMORY_MAX } from "./writer/dirty-bitmaps.ts";

function entriesOf({ clusterSize, extensions }: Qcow2Layout, storage: Storage): BitmapEntry[] {
  const { bitmaps } = extensions;
  return bitmaps === undefined ? [] : readBitmapEntries(bitmaps, storage, clusterSize);
}

/**
 * The bitmaps of an image, in the order of its directory; undefined: its version has none.
 *
 * @throws {FormatError} the directory is damaged
 */
export function listQcow2Bitmaps(
  layout: Qcow2Layout,
  storage: Storage,
): readonly StoredBitmap[] | undefined {
  if (layout.header.version < 3) return undefined;
  return entriesOf(layout, storage).map((entry) => ({
    name: entry.name,
    isEnabled: (entry.flags & BITMAP_FLAG.auto) !== 0,
    isConsistent: isUsable(entry),
    bytes: bitmapBytes(layout.virtualSize, entry.granularityBits),
  }));
}

/**
 * What a bitmap says.
 *
 * @throws {UsageError} there is none of that name, or it is inconsistent
 * @throws {FormatError} its table is damaged
 */
export function readQcow2Bitmap(
  layout: Qcow2Layout,
  storage: Storage,
  name: string,
): BitmapContents {
  const { virtualSize } = layout;
  const entry = entriesOf(layout, storage).find((candidate) => candidate.name === name);
  if (entry === undefined) throw new UsageError(storage.path, `there is no bitmap "${name}"`);
  const { granularityBits } = entry;
  const bytes = bitmapBytes(virtualSize, granularityBits);
  if (!isUsable(entry) || bytes > BITMAP_MEMORY_MAX) {
    throw new UsageError(storage.path, `bitmap "${name}" is inconsistent, or too large`);
  }
  const bits = new Uint8Array(bytes);
  loadBits(entry, storage, layout, bits);
  return { granularityBits, virtualSize, bits };
}
