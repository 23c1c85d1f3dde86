/** What a check has to know of an image: its header, read although other structures may be damaged. */

import type { Storage, WritableStorage } from "../../../storage/storage.ts";
import { INCOMPATIBLE } from "../features.ts";
import { readFirstCluster } from "../first-cluster.ts";
import { checkHeader, type Geometry, type Header, SNAPSHOTS_MAX } from "../header.ts";
import type { HeaderExtensions } from "../header-extensions.ts";

/** A layout that was read for use fits, too. */
export interface CheckLayout extends Geometry {
  readonly header: Header;
  readonly extensions: HeaderExtensions;
}

/** A file with an image in it, as it is now. */
export interface CheckedImage {
  readonly storage: Storage;
  readonly layout: CheckLayout;
  /** Bytes of the file. */
  readonly length: number;
}

/**
 * Read the header and its extensions. What they lead to is not looked at.
 *
 * @throws {FormatError | UnsupportedError | StorageError} even a check can make nothing of it
 */
export function readCheckLayout(storage: Storage): CheckLayout {
  const { path } = storage;
  const { header, extensions, clusterSize } = readFirstCluster(storage);
  // Two things that are errors for others are what a check finds and repairs.
  const tolerated = {
    ...header,
    refcount_table_clusters: Math.max(1, header.refcount_table_clusters),
    nb_snapshots: Math.min(SNAPSHOTS_MAX, header.nb_snapshots),
  };
  return { ...checkHeader(tolerated, clusterSize, path), header, extensions };
}

export function checkedImage(storage: WritableStorage, layout: CheckLayout): CheckedImage {
  return { storage, layout, length: storage.currentLength() };
}

/** Whether data clusters are in a file of their own, where nobody counts references. */
export function hasDataFile({ header }: CheckLayout): boolean {
  return (header.incompatible_features & INCOMPATIBLE.externalDataFile) !== 0n;
}

/** The most that a refcount of this image can say; above 2^53, no count gets there. */
export function refcountMax({ refcountBits }: CheckLayout): number {
  return 2 ** refcountBits - 1;
}
