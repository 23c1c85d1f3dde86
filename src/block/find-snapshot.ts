/** Internal snapshots by what people call them. */

import { TsimgfsError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";

/**
 * The index of a snapshot in the table of an image. As QEMU, an ID counts before a name.
 *
 * @throws {TsimgfsError} ENOENT: there is none
 */
export function findSnapshot(image: FormatImage, idOrName: string): number {
  let index = 0;
  let named: number | undefined;
  for (const { id, name } of image.readSnapshots()) {
    if (id === idOrName) return index;
    if (name === idOrName) named ??= index;
    index++;
  }
  if (named !== undefined) return named;
  throw new TsimgfsError("ENOENT", image.storage.path, `has no snapshot "${idOrName}"`);
}
