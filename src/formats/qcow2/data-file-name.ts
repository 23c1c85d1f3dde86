/** Another name of the external data file, in one instant. Source: qcow2 specification, "Header extensions". */

import assert from "node:assert";
import { UsageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import { switchHeader } from "../header-switch.ts";
import { backingReferenceOf, readFirstCluster } from "./first-cluster.ts";
import { HeaderArea } from "./header-area.ts";
import { DATA_FILE_NAME_MAX } from "./header-extensions.ts";
import { rewriteHeader } from "./header-rewrite.ts";

/**
 * Refuse a name that an image cannot have, or that it could not be opened with.
 *
 * @param path of the image, for messages
 * @throws {UsageError}
 */
export function checkDataFileName(path: string, name: string): void {
  const size = Buffer.byteLength(name);
  if (size >= 1 && size <= DATA_FILE_NAME_MAX && !name.includes("\0")) return;
  const reason = `the data file's name has ${size} bytes, and must have 1 to ${DATA_FILE_NAME_MAX}, none of them zero`;
  throw new UsageError(path, reason);
}

/**
 * Let an image that has an external data file name another one, durably: at every instant it names the old one or
 * the new one. Neither is looked at. Nobody else may write to the header meanwhile.
 *
 * @param name as it is to be stored, checked
 * @throws {StorageError} ENOSPC: the first cluster has no room for it; nothing is changed
 * @throws {FormatError | UnsupportedError}
 */
export function setDataFileName(storage: WritableStorage, name: string): void {
  const firstCluster = readFirstCluster(storage);
  const { header, extensions, bytes } = firstCluster;
  assert(extensions.dataFileName !== undefined, "only an image that has a data file gets another");
  if (extensions.dataFileName === name) {
    // The host shows it, and may have dropped it, if the sync of who wrote it has failed.
    switchHeader(storage, bytes, bytes);
    return;
  }
  const change = { backing: backingReferenceOf(firstCluster, storage.path), dataFile: name };
  rewriteHeader(storage, new HeaderArea(header, bytes), change, "another data file's name");
}
