/** The analysis of an image whose structures are to be rewritten as a whole: it must be intact. */

import { CorruptionError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { type Analysis, analyse } from "../check/analysis.ts";
import { checkedImage, readCheckLayout } from "../check/check-layout.ts";

/**
 * Check an image, and refuse one that is damaged.
 *
 * @throws {CorruptionError} it is
 * @throws {FormatError | UnsupportedError | StorageError} the check cannot be completed
 */
export function analyseIntact(storage: WritableStorage): Analysis {
  const image = checkedImage(storage, readCheckLayout(storage));
  const analysis = analyse(image, { mode: "tolerant", report: () => undefined });
  const { corruptions, checkErrors } = analysis.result;
  if (corruptions + checkErrors === 0) return analysis;
  throw new CorruptionError(storage.path, "is damaged, and not amended: see tsimgfs check");
}
