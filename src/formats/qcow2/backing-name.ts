/** Another backing file for an image that exists, in one instant. Source: qcow2 specification, "Header". */

import { UsageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import type { BackingReference } from "../driver.ts";
import { switchHeader } from "../header-switch.ts";
import { AUTOCLEAR } from "./features.ts";
import { backingReferenceOf, readFirstCluster } from "./first-cluster.ts";
import { BACKING_FILE_SIZE_MAX } from "./header.ts";
import { HeaderArea } from "./header-area.ts";
import { BACKING_FORMAT_MAX } from "./header-extensions.ts";
import { rewriteHeader } from "./header-rewrite.ts";

/**
 * Let an image have another backing file, or none, durably; what was written to the file before is durable
 * then, too. At every instant, the image has the old one with its format, or the new one. Nobody else
 * may write to the header meanwhile.
 *
 * @param backing as it is to be stored; undefined: none any more
 * @throws {UsageError} qcow2 cannot say it
 * @throws {StorageError} ENOSPC: the first cluster has no room for it; nothing is changed
 * @throws {FormatError | UnsupportedError}
 */
export function setQcow2BackingFile(
  storage: WritableStorage,
  backing: BackingReference | undefined,
): void {
  const { path } = storage;
  const firstCluster = readFirstCluster(storage);
  const { header, bytes } = firstCluster;
  const current = backingReferenceOf(firstCluster, path);
  if (current?.name === backing?.name && current?.format === backing?.format) {
    // The host shows it, and may have dropped it, if the sync of who wrote it has failed.
    switchHeader(storage, bytes, bytes);
    return;
  }
  checkBacking(backing, path);
  if (backing !== undefined && (header.autoclear_features & AUTOCLEAR.rawExternalData) !== 0n) {
    const reason = "its data file alone is the disk (data_file_raw): it cannot have a backing file";
    throw new UsageError(path, reason);
  }
  rewriteHeader(storage, new HeaderArea(header, bytes), { backing }, "another backing file's name");
}

function checkBacking(backing: BackingReference | undefined, path: string): void {
  if (backing === undefined) return;
  const limit = (what: string, text: string, max: number): void => {
    const size = Buffer.byteLength(text);
    if (size >= 1 && size <= max && !text.includes("\0")) return;
    throw new UsageError(
      path,
      `the backing file's ${what} has ${size} bytes, and must have 1 to ${max}, none of them zero`,
    );
  };
  limit("name", backing.name, BACKING_FILE_SIZE_MAX);
  if (backing.format !== undefined) limit("format", backing.format, BACKING_FORMAT_MAX);
}
