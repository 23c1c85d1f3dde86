/** The header where it is stored: read from the file, and its feature bits changed in place. */

import { encode, offsetOf, sizeOf } from "../../binary/struct.ts";
import type { Storage, WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import { HEADER, HEADER_SIZE, type Header, readHeader } from "./header.ts";

const FEATURES_START = offsetOf(HEADER, "features");
const FEATURES_END = sizeOf(HEADER, "autoclear_features");

/**
 * Read and check the header. What it leads to is not looked at.
 *
 * @param fileLength bytes
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function readStoredHeader(storage: Storage, fileLength: number): Header {
  const head = NativeBuffer.allocate(HEADER_SIZE);
  storage.readAt(head, 0, HEADER_SIZE, 0);
  return readHeader(head.bytes, fileLength, storage.path);
}

/**
 * Write other feature bits, in one write within one sector. The autoclear bits are cleared: there is none
 * that we know, and who writes to an image clears the others.
 *
 * @param header as it is stored
 * @throws {StorageError}
 */
export function writeFeatures(storage: WritableStorage, header: Header, features: bigint): void {
  const { compat_features } = header;
  const head = NativeBuffer.allocate(HEADER_SIZE);
  encode(HEADER, { features, compat_features, autoclear_features: 0n }, head.bytes, "le");
  storage.writeAt(head, FEATURES_START, FEATURES_END - FEATURES_START, FEATURES_START);
}
