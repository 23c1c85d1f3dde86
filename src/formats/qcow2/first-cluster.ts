/** The first cluster of a qcow2 image: the header and its extensions, checked as far as their form goes. */

import { UnsupportedError } from "../../errors.ts";
import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { BackingReference } from "../driver.ts";
import { AUTOCLEAR, FEATURE_KIND, INCOMPATIBLE_KNOWN, namesOfBits } from "./features.ts";
import {
  CRYPT_METHOD,
  checkHeaderStart,
  type Header,
  readBackingName,
  readHeader,
} from "./header.ts";
import { type HeaderExtensions, readHeaderExtensions } from "./header-extensions.ts";

/** Bytes of the file that hold any header. */
const HEADER_READ_SIZE = 4096;

export interface FirstCluster {
  readonly header: Header;
  readonly extensions: HeaderExtensions;
  /** Bytes. */
  readonly clusterSize: number;
  /** The whole cluster. */
  readonly bytes: Uint8Array;
}

/**
 * Read the first cluster. What its fields lead to is not looked at.
 *
 * @throws {FormatError | UnsupportedError | StorageError}
 */
export function readFirstCluster(storage: Storage): FirstCluster {
  const { path } = storage;
  const head = NativeBuffer.allocate(HEADER_READ_SIZE);
  storage.readAt(head, 0, HEADER_READ_SIZE, 0);
  const header = readHeader(head.bytes, path);
  const clusterSize = checkHeaderStart(header, path);
  const cluster = NativeBuffer.allocate(clusterSize);
  storage.readAt(cluster, 0, clusterSize, 0);
  const extensions = readHeaderExtensions(
    cluster.bytes,
    {
      start: header.header_length,
      end: header.backing_file_offset === 0 ? clusterSize : header.backing_file_offset,
      bitmapsValid: (header.autoclear_features & AUTOCLEAR.bitmaps) !== 0n,
      luks: header.crypt_method === CRYPT_METHOD.luks,
    },
    path,
  );
  const unknown = header.incompatible_features & ~INCOMPATIBLE_KNOWN;
  if (unknown !== 0n) {
    const names = namesOfBits(unknown, FEATURE_KIND.incompatible, extensions.featureNames);
    const reason = `incompatible features are not supported: ${names.join(", ")}`;
    throw new UnsupportedError(path, reason);
  }
  return { header, extensions, clusterSize, bytes: cluster.bytes };
}

/**
 * The backing file as it is stored; an empty name is none.
 *
 * @param path of the image, for messages
 * @throws {FormatError} the name is too long
 */
export function backingReferenceOf(
  { header, extensions, bytes }: FirstCluster,
  path: string,
): BackingReference | undefined {
  const name = readBackingName(header, bytes, path);
  return name ? { name, format: extensions.backingFormat } : undefined;
}
