/** Another backing file for an image that exists, in one instant. Source: QED specification, "Header". */

import { encode } from "../../binary/struct.ts";
import { StorageError, UnsupportedError, UsageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { BackingReference } from "../driver.ts";
import { canSwitch, switchHeader } from "../header-switch.ts";
import { backingFeatures } from "./create.ts";
import { BACKING_FILENAME_MAX, FEATURE, HEADER, HEADER_SIZE, type Header } from "./header.ts";
import { readStoredHeader } from "./stored-header.ts";

/** Bytes: where names are put. Headers may have gigabytes, and two names fit into this. */
const AREA_MAX = 4 * 4096;

const BACKING_FEATURES = FEATURE.backingFile | FEATURE.backingFormatNoProbe;

/**
 * Let an image have another backing file, or none, durably; what was written to the file before is durable
 * then, too. At every instant, the image has the old one with its format, or the new one. Nobody else
 * may write to the header meanwhile.
 *
 * @param backing as it is to be stored, but of formats, only raw is; undefined: none any more
 * @throws {UsageError} QED cannot say it
 * @throws {UnsupportedError} an unknown feature may have its data where the name would be put
 * @throws {StorageError} ENOSPC: the header has no room for it; nothing is changed
 * @throws {FormatError}
 */
export function setQedBackingFile(
  storage: WritableStorage,
  backing: BackingReference | undefined,
): void {
  const { path } = storage;
  const header = readStoredHeader(storage, storage.currentLength());
  const area = NativeBuffer.allocate(Math.min(header.header_size * header.cluster_size, AREA_MAX));
  storage.readAt(area, 0, area.length, 0);
  if (isStored(storage, header, backing)) {
    // The host shows it, and may have dropped it, if the sync of who wrote it has failed.
    switchHeader(storage, area.bytes, area.bytes);
    return;
  }
  if (backing !== undefined) {
    checkName(backing.name, path);
    if (header.compat_features !== 0n) {
      const reason =
        "has compatible features that are not known, whose data may be behind the header";
      throw new UnsupportedError(path, `${reason}: its backing file cannot be changed`);
    }
  }
  const { backing_filename_offset: start, backing_filename_size: size } = header;
  const inUse =
    (header.features & FEATURE.backingFile) === 0n ? [] : [{ start, end: start + size }];
  for (const place of [HEADER_SIZE, Math.ceil((start + size) / 8) * 8]) {
    const wanted = withBacking(area.bytes, header, backing, place);
    if (wanted === undefined || !canSwitch(area.bytes, wanted, inUse)) continue;
    switchHeader(storage, area.bytes, wanted);
    return;
  }
  const reason = `its header has no room for another backing file's name beside that which is there`;
  throw new StorageError("ENOSPC", path, reason);
}

/** The start of the file with another backing file, or undefined if the name does not fit there. */
function withBacking(
  area: Uint8Array,
  header: Header,
  backing: BackingReference | undefined,
  place: number,
): Uint8Array | undefined {
  const name = Buffer.from(backing?.name ?? "");
  if (place + name.length > area.length) return undefined;
  const bytes = Uint8Array.from(area);
  bytes.set(name, place);
  encode(
    HEADER,
    {
      features: (header.features & ~BACKING_FEATURES) | backingFeatures(backing),
      autoclear_features: 0n,
      backing_filename_offset: backing === undefined ? 0 : place,
      backing_filename_size: name.length,
    },
    bytes,
    "le",
  );
  return bytes;
}

/** Whether the image says just that. */
function isStored(
  storage: WritableStorage,
  header: Header,
  backing: BackingReference | undefined,
): boolean {
  const features = header.features & BACKING_FEATURES;
  if (features !== backingFeatures(backing)) return false;
  if (backing === undefined) return true;
  const name = NativeBuffer.allocate(header.backing_filename_size);
  storage.readAt(name, 0, name.length, header.backing_filename_offset);
  return Buffer.from(name.bytes).equals(Buffer.from(backing.name));
}

function checkName(name: string, path: string): void {
  const size = Buffer.byteLength(name);
  if (size >= 1 && size <= BACKING_FILENAME_MAX && !name.includes("\0")) return;
  const reason = `the backing file's name has ${size} bytes, and must have 1 to ${BACKING_FILENAME_MAX}, none of them zero`;
  throw new UsageError(path, reason);
}
