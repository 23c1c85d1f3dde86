/** Another backing file for an image that exists, in one instant. Source: qcow2 specification, "Header". */

import assert from "node:assert";
import { StorageError, UsageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import type { BackingReference } from "../driver.ts";
import { canSwitch, switchHeader } from "../header-switch.ts";
import { AUTOCLEAR } from "./features.ts";
import { readFirstCluster } from "./first-cluster.ts";
import { BACKING_FILE_SIZE_MAX, readBackingName } from "./header.ts";
import { HeaderArea } from "./header-area.ts";
import { BACKING_FORMAT_MAX } from "./header-extensions.ts";

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
  const { header, extensions, bytes } = readFirstCluster(storage);
  const name = readBackingName(header, bytes, path) || undefined;
  if (
    name === backing?.name &&
    (name === undefined || extensions.backingFormat === backing?.format)
  ) {
    return;
  }
  checkBacking(backing, path);
  if (backing !== undefined && (header.autoclear_features & AUTOCLEAR.rawExternalData) !== 0n) {
    const reason = "its data file alone is the disk (data_file_raw): it cannot have a backing file";
    throw new UsageError(path, reason);
  }
  const area = new HeaderArea(header, bytes);
  const wanted = reachable(area, backing);
  if (wanted !== undefined) {
    switchHeader(storage, area.bytes, wanted.bytes);
    return;
  }
  // What is to move is in use. So it is copied to where it is not in the way, and used there until it
  // is where it belongs: the backing file is the new one as soon as the copy is in use.
  const detour = behindAll(area, backing);
  const straight = detour && reachable(detour, backing);
  if (detour === undefined || straight === undefined) {
    const reason = `its first cluster of ${bytes.length} bytes has no room for another backing file's name beside what is there`;
    throw new StorageError("ENOSPC", path, reason);
  }
  switchHeader(storage, area.bytes, detour.bytes);
  switchHeader(storage, detour.bytes, straight.bytes);
}

/** The area with another backing file, if it takes the first sector alone to switch to it. */
function reachable(
  area: HeaderArea,
  backing: BackingReference | undefined,
): HeaderArea | undefined {
  for (const place of [0, Math.ceil(area.end() / 8) * 8]) {
    const wanted = area.withBacking(backing, place);
    if (wanted !== undefined && canSwitch(area.bytes, wanted.bytes, area.inUse())) return wanted;
  }
  return undefined;
}

/** The area with another backing file, and all that is not in the first sector behind what is in use. */
function behindAll(
  area: HeaderArea,
  backing: BackingReference | undefined,
): HeaderArea | undefined {
  const final = area.withBacking(backing, 0);
  if (final === undefined) return undefined;
  const detour = area.detour(backing, Math.ceil(Math.max(area.end(), final.end()) / 8) * 8);
  if (detour === undefined) return undefined;
  assert(canSwitch(area.bytes, detour.bytes, area.inUse()), "a detour leaves what is in use alone");
  return detour;
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
