/** The persistent bitmaps that come along when a disk is copied to another image. */

import { UsageError } from "../../errors.ts";
import { listBitmaps, readBitmap } from "../../formats/formats.ts";
import { BITMAP_MEMORY_MAX } from "../../formats/qcow2/writer/dirty-bitmaps.ts";
import type { BitmapContents, BitmapEdit } from "../../formats/writer.ts";
import { LocalFile } from "../../storage/local-file.ts";
import type { OpenChain, SharedLayer } from "../open-chain.ts";

/** A bitmap of the source, in memory. */
export interface CopiedBitmap {
  readonly name: string;
  readonly isEnabled: boolean;
  readonly contents: BitmapContents;
}

/** What to do about bitmaps that say nothing reliable. */
export type InconsistentBitmaps = "refuse" | "skip";

function topOf({ layers: [top] }: OpenChain): SharedLayer {
  if (top === undefined) throw new RangeError("a chain has at least one image");
  return top;
}

/**
 * Read the bitmaps of the image itself, not those of its backing files.
 *
 * @param skipped told of each that is left out: one line
 * @throws {UsageError} the image can have none, one is inconsistent, or they are too large
 */
export function readCopiedBitmaps(
  chain: OpenChain,
  inconsistent: InconsistentBitmaps,
  skipped: (line: string) => void,
): readonly CopiedBitmap[] {
  const { layout, file } = topOf(chain);
  const storage = new LocalFile(file);
  const { path } = file;
  const stored = listBitmaps(layout, storage);
  if (stored === undefined) throw new UsageError(path, "can have no bitmaps (--bitmaps)");
  const copied = stored.filter(({ name, isConsistent }) => {
    if (isConsistent) return true;
    if (inconsistent === "refuse") {
      const advice = "--skip-broken-bitmaps leaves it out, and tsimgfs bitmap --remove removes it";
      throw new UsageError(path, `bitmap "${name}" is inconsistent; ${advice}`);
    }
    skipped(`${path}: warning: bitmap "${name}" is inconsistent, and is left out`);
    return false;
  });
  const bytes = copied.reduce((sum, bitmap) => sum + bitmap.bytes, 0);
  if (bytes > BITMAP_MEMORY_MAX) {
    const reason = `its bitmaps take ${bytes} bytes of memory, the limit is ${BITMAP_MEMORY_MAX}`;
    throw new UsageError(path, reason);
  }
  return copied.map(({ name, isEnabled }) => {
    return { name, isEnabled, contents: readBitmap(layout, storage, name) };
  });
}

/**
 * Refuse a target that cannot get bitmaps, before anything is copied to it.
 *
 * @param virtualSize of the target, bytes
 * @throws {UsageError} it can have none, has one of that name, or its disk has another size
 */
export function requireRoomForBitmaps(
  target: OpenChain,
  virtualSize: number,
  bitmaps: readonly CopiedBitmap[],
): void {
  const { layout, file } = topOf(target);
  const present = listBitmaps(layout, new LocalFile(file));
  if (present === undefined) {
    throw new UsageError(file.path, `this ${layout.format} image can have no bitmaps (--bitmaps)`);
  }
  for (const { name, contents } of bitmaps) {
    if (present.some((bitmap) => bitmap.name === name)) {
      throw new UsageError(file.path, `has a bitmap "${name}" already`);
    }
    if (contents.virtualSize !== virtualSize) {
      const reason = `its disk has ${virtualSize} bytes, that of bitmap "${name}" ${contents.virtualSize}`;
      throw new UsageError(file.path, reason);
    }
  }
}

/** The edits that make the bitmaps in another image. */
export function bitmapCopies(bitmaps: readonly CopiedBitmap[]): BitmapEdit[] {
  return bitmaps.flatMap(({ name, isEnabled, contents }): BitmapEdit[] => [
    { name, action: "add", granularity: 2 ** contents.granularityBits },
    { name, action: "merge", source: contents },
    { name, action: isEnabled ? "enable" : "disable" },
  ]);
}
