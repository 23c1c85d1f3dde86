/** What a writer that was stopped left behind: clusters behind the last one in use, and, of QEMU's, entries without one. */

import { CorruptionError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { repairQed } from "../check/repair.ts";
import { FEATURE } from "../header.ts";
import type { QedLayout } from "../layout.ts";

/**
 * Check and repair an image that was not closed orderly, as QEMU does.
 *
 * @returns what happened, for the user to know; undefined: there was nothing to do
 * @throws {TsimgfsError} it cannot be repaired
 */
export function repairQedBeforeWriting(
  { header }: QedLayout,
  storage: WritableStorage,
): string | undefined {
  if ((header.features & FEATURE.needCheck) === 0n) return undefined;
  const { result, corruptionsFixed } = repairQed(storage, "all", () => undefined);
  if (result.corruptions > 0) {
    const reason = `is damaged beyond what a repair can do (${result.corruptions} errors are left; check tells more)`;
    throw new CorruptionError(storage.path, reason);
  }
  const repairs =
    corruptionsFixed === 0
      ? "nothing is damaged"
      : `${corruptionsFixed} entries that could not be right have been cleared`;
  return `was not closed cleanly (need-check bit); it has been checked: ${repairs}`;
}
