/** Giving the end of a file back to the host: nothing that is in use depends on it. */

import { StorageError } from "../errors.ts";
import type { WritableStorage } from "../storage/storage.ts";

/**
 * Cut a file, unless its host keeps files as long as they are: then what is behind the end stays unused.
 *
 * @throws {StorageError} it cannot be cut for another reason than EPERM
 */
export function cutFile(storage: WritableStorage, length: number): void {
  try {
    storage.setLength(length);
  } catch (error) {
    // truncate(2): a seal, or a file system that does not support it.
    if (!(error instanceof StorageError) || error.code !== "EPERM") throw error;
  }
}
