/** What the specification asks of bitmaps, beyond what it takes to follow them. */

import { FormatError, hex } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import { tableEntriesFor } from "../bitmap-bits.ts";
import { BITMAP_FLAG, readDirectoryEntries, TYPE_DIRTY_TRACKING } from "../bitmap-directory.ts";
import type { BitmapsExtension } from "../header-extensions.ts";
import type { CheckLayout } from "./check-layout.ts";

/** Bits of the flags that have a meaning; bit 2 is about extra data. */
const FLAGS_KNOWN = 0b111;

/**
 * Refuse bitmaps that contradict the specification. QEMU opens no such image, not even to check it.
 *
 * @throws {FormatError} a type or a flag that does not exist, a name that is empty or not unique, a table of
 *   another size than the disk's; the directory is damaged
 */
export function checkBitmapEntries(
  extension: BitmapsExtension,
  storage: Storage,
  { clusterSize, virtualSize }: CheckLayout,
): void {
  const names = new Set<string>();
  for (const { entry, name, at } of readDirectoryEntries(extension, storage)) {
    const bytes = Buffer.from(name);
    const refuse = (reason: string): never => {
      const site = { offset: extension.directoryOffset + at };
      throw new FormatError(storage.path, `bitmap "${bytes}" ${reason}`, site);
    };
    if (name.length === 0) refuse("has no name");
    if (entry.type !== TYPE_DIRTY_TRACKING) refuse(`has the type ${entry.type}, which is none`);
    if ((entry.flags & ~FLAGS_KNOWN) !== 0) refuse(`has the reserved flags ${hex(entry.flags)}`);
    // What is in use may be torn.
    if ((entry.flags & BITMAP_FLAG.inUse) !== 0) continue;
    // Names need not be text.
    const key = bytes.toString("latin1");
    if (names.has(key)) refuse("is there twice");
    names.add(key);
    const entries = tableEntriesFor(virtualSize, entry.granularity_bits, clusterSize);
    if (entry.bitmap_table_size !== entries) {
      refuse(`has a table of ${entry.bitmap_table_size} entries, where its disk takes ${entries}`);
    }
  }
}
