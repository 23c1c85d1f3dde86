/** Internal snapshots that show what is below their image, and so would change with it. */

import { UnsupportedError } from "../errors.ts";
import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";

/**
 * Refuse a change of what is below an image that one of its snapshots would show. Where it has nothing itself,
 * past the end of a backing file too, another one may have something.
 *
 * @throws {UnsupportedError}
 * @throws {CorruptionError | StorageError} its tables cannot be right, or read
 */
export function refuseDependentSnapshots(image: FormatImage): void {
  for (const { name, number } of image.readSnapshots()) {
    const at = firstUnallocated(image.openSnapshot(number));
    if (at === undefined) continue;
    const reason = `its snapshot "${name}" shows what is below it, from offset ${at} on, and would change; delete it first (tsimgfs snapshot -d)`;
    throw new UnsupportedError(image.storage.path, reason);
  }
}

/** Offset of the first byte that an image has nothing for. */
function firstUnallocated(image: FormatImage): number | undefined {
  const extent = new Extent();
  for (let offset = 0; offset < image.virtualSize; offset += extent.length) {
    image.mapExtent(offset, image.virtualSize - offset, extent);
    if (extent.kind === EXTENT.unallocated) return offset;
  }
  return undefined;
}
