/** Changing what the first cluster says beyond fixed fields, so that at every instant it is the old or the new. */

import assert from "node:assert";
import { StorageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import { canSwitch, switchHeader } from "../header-switch.ts";
import type { HeaderArea, HeaderChange } from "./header-area.ts";

/**
 * Change a header, durably; what was written to the file before is durable then, too. Nobody else may write
 * to the header meanwhile.
 *
 * @param area the first cluster as it is
 * @param what there may be no room for
 * @throws {StorageError} ENOSPC: the first cluster has no room for it; nothing is changed
 */
export function rewriteHeader(
  storage: WritableStorage,
  area: HeaderArea,
  change: HeaderChange,
  what: string,
): void {
  const wanted = reachable(area, change);
  if (wanted !== undefined) {
    switchHeader(storage, area.bytes, wanted.bytes);
    return;
  }
  // What is to move is in use. So it is copied to where it is not in the way, and used there until it
  // is where it belongs: the change has happened as soon as the copy is in use.
  const detour = behindAll(area, change);
  const straight = detour && reachable(detour, change);
  if (detour === undefined || straight === undefined) {
    const reason = `its first cluster of ${area.bytes.length} bytes has no room for ${what} beside what is there`;
    throw new StorageError("ENOSPC", storage.path, reason);
  }
  switchHeader(storage, area.bytes, detour.bytes);
  switchHeader(storage, detour.bytes, straight.bytes);
}

/** The area with a change, if it takes the first sector alone to switch to it. */
function reachable(area: HeaderArea, change: HeaderChange): HeaderArea | undefined {
  for (const place of [0, Math.ceil(area.end() / 8) * 8]) {
    const wanted = area.changed(change, place);
    if (wanted !== undefined && canSwitch(area.bytes, wanted.bytes, area.inUse())) return wanted;
  }
  return undefined;
}

/** The area with a change, and all that is not in the first sector behind what is in use. */
function behindAll(area: HeaderArea, change: HeaderChange): HeaderArea | undefined {
  const final = area.changed(change, 0);
  if (final === undefined) return undefined;
  const detour = area.detour(change, Math.ceil(Math.max(area.end(), final.end()) / 8) * 8);
  if (detour === undefined) return undefined;
  assert(canSwitch(area.bytes, detour.bytes, area.inUse()), "a detour leaves what is in use alone");
  return detour;
}
