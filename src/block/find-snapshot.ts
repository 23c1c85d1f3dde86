/** Internal snapshots by what people call them. */

import { TsimgfsError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";

/**
 * The number of a snapshot of an image. As QEMU, an ID counts before a name.
 *
 * @throws {TsimgfsError} ENOENT: there is none
 */
export function findSnapshot(image: FormatImage, idOrName: string): number {
  let named: number | undefined;
  for (const { number, id, name } of image.readSnapshots()) {
    if (id === idOrName) return number;
    if (name === idOrName) named ??= number;
  }
  return named ?? missing(image, idOrName);
}

/** What is known of a snapshot: one of both, or both. */
export interface SnapshotTraits {
  readonly id: string | undefined;
  readonly name: string | undefined;
}

/**
 * As `findSnapshot`, of the first one that has all that is known.
 *
 * @throws {TsimgfsError} ENOENT: there is none
 */
export function findSnapshotWith(image: FormatImage, wanted: SnapshotTraits): number {
  for (const { number, id, name } of image.readSnapshots()) {
    if (id === (wanted.id ?? id) && name === (wanted.name ?? name)) return number;
  }
  return missing(image, wanted.name ?? wanted.id ?? "");
}

/**
 * As `findSnapshot`, of a name only; if several have it, the first one.
 *
 * @throws {TsimgfsError} ENOENT: there is none
 */
export function findNamedSnapshot(image: FormatImage, wanted: string): number {
  for (const { number, name } of image.readSnapshots()) if (name === wanted) return number;
  return missing(image, wanted);
}

function missing(image: FormatImage, name: string): never {
  throw new TsimgfsError("ENOENT", image.storage.path, `has no snapshot "${name}"`);
}
