/** A look at all tables of an image that is written to: which clusters are in use, and whether that can be. */

import { CorruptionError } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import { type Analysis, analyse } from "../check/analysis.ts";
import { readStoredHeader } from "../stored-header.ts";

/**
 * @throws {CorruptionError} an entry cannot be right, or two of them refer to one cluster: whatever is written
 *   could be written over
 * @throws {UnsupportedError | StorageError}
 */
export function examineTables(storage: Storage): Analysis {
  const length = storage.currentLength();
  const image = { storage, header: readStoredHeader(storage, length), length };
  let first: string | undefined;
  const analysis = analyse(image, (line) => {
    first ??= line;
  });
  if (analysis.result.corruptions === 0) return analysis;
  const reason = `${first}: see tsimgfs check, or read the image with -r`;
  throw new CorruptionError(storage.path, reason);
}
