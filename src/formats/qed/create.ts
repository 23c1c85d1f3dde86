/** New QED images: checked first, then written, the header last. Source: QED specification, "Header". */

import { encode } from "../../binary/struct.ts";
import { UnsupportedError, UsageError } from "../../errors.ts";
import type { WritableStorage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { BackingReference } from "../driver.ts";
import { type CreationPieces, emptyStorage, SECTOR_SIZE } from "../raw/create.ts";
import {
  BACKING_FILENAME_MAX,
  CLUSTER_SIZE_MAX,
  CLUSTER_SIZE_MIN,
  FEATURE,
  HEADER,
  HEADER_SIZE,
  QED_MAGIC,
  TABLE_SIZE_MAX,
} from "./header.ts";

/** A new image, as it is wanted. */
export interface QedCreateOptions {
  /** Bytes, whole sectors. */
  readonly virtualSize: number;
  /** Bytes. */
  readonly clusterSize: number;
  /** Clusters of a table. */
  readonly tableSize: number;
  readonly backingFile: BackingReference | undefined;
}

/** A new image of which everything is known and nothing is written. */
export interface PlannedQed {
  /** Bytes of the file: a cluster of header, and the L1 table. */
  readonly length: number;
  /** What is not zero of the header: whole sectors. */
  readonly header: NativeBuffer;
}

const HEADER_CLUSTERS = 1;

/** The format allows tables of one cluster, but QEMU opens no image that has them. */
const TABLE_SIZE_MIN = 2;

/** QEMU's limit: it reckons with what the tables can map in 64 bits. */
const MAPPED_MAX = 2 ** 64;

/**
 * Check what is wanted, and make the header. Touches no file.
 *
 * @param path the image, for error messages
 * @throws {UsageError} QED has no such image
 */
export function planQed(wanted: QedCreateOptions, path: string): PlannedQed {
  checkGeometry(wanted, path);
  const { virtualSize, clusterSize, tableSize, backingFile } = wanted;
  const name = Buffer.from(backingFile?.name ?? "");
  const nameMax = Math.min(BACKING_FILENAME_MAX, HEADER_CLUSTERS * clusterSize - HEADER_SIZE);
  if (name.length > nameMax) {
    const reason = `the backing file's name has ${name.length} bytes, the limit is ${nameMax}`;
    throw new UsageError(path, reason);
  }
  const sectors = Math.ceil((HEADER_SIZE + name.length) / SECTOR_SIZE);
  const header = NativeBuffer.allocate(sectors * SECTOR_SIZE);
  encode(
    HEADER,
    {
      magic: QED_MAGIC,
      cluster_size: clusterSize,
      table_size: tableSize,
      header_size: HEADER_CLUSTERS,
      features: backingFeatures(backingFile),
      l1_table_offset: HEADER_CLUSTERS * clusterSize,
      image_size: virtualSize,
      backing_filename_offset: backingFile === undefined ? 0 : HEADER_SIZE,
      backing_filename_size: name.length,
    },
    header.bytes,
    "le",
  );
  header.bytes.set(name, HEADER_SIZE);
  return { length: (HEADER_CLUSTERS + tableSize) * clusterSize, header };
}

/** The feature bits that tell of a backing file; raw is the only format that they can state. */
export function backingFeatures(backingFile: BackingReference | undefined): bigint {
  if (backingFile === undefined) return 0n;
  const { format } = backingFile;
  return FEATURE.backingFile | (format === "raw" ? FEATURE.backingFormatNoProbe : 0n);
}

const isPowerOfTwo = (value: number): boolean => value > 0 && Number.isInteger(Math.log2(value));

function checkGeometry(
  { virtualSize, clusterSize, tableSize }: QedCreateOptions,
  path: string,
): void {
  const refuseIf = (condition: boolean, reason: string): void => {
    if (condition) throw new UsageError(path, reason);
  };
  refuseIf(
    !isPowerOfTwo(clusterSize) || clusterSize < CLUSTER_SIZE_MIN || clusterSize > CLUSTER_SIZE_MAX,
    `cluster_size ${clusterSize} is not a power of two in ${CLUSTER_SIZE_MIN}..${CLUSTER_SIZE_MAX}`,
  );
  refuseIf(
    !isPowerOfTwo(tableSize) || tableSize < TABLE_SIZE_MIN || tableSize > TABLE_SIZE_MAX,
    `table_size ${tableSize} is not a power of two in ${TABLE_SIZE_MIN}..${TABLE_SIZE_MAX} (clusters)`,
  );
  const mapped = ((tableSize * clusterSize) / 8) ** 2 * clusterSize;
  refuseIf(
    mapped >= MAPPED_MAX,
    `tables of ${tableSize} clusters of ${clusterSize} bytes would map 2^${Math.log2(mapped)} bytes, and QEMU has to stay below 2^64; make cluster_size or table_size smaller`,
  );
  refuseIf(
    virtualSize > mapped,
    `size ${virtualSize} is above what tables of ${tableSize} clusters of ${clusterSize} bytes map, ${mapped} bytes; make cluster_size or table_size larger`,
  );
}

/**
 * Refuse what an image could be written to, but would not work: clusters are taken behind the end of
 * the file.
 *
 * @throws {UnsupportedError} a device
 */
export function requireFile(storage: WritableStorage): void {
  if (storage.resizable) return;
  const reason = "is a device, and a QED image needs a file, which grows with it";
  throw new UnsupportedError(storage.path, reason);
}

/**
 * Write a planned image, durably. The first sector comes when all else is on disk: until then, and if
 * anything fails, the file is no image.
 *
 * @param storage what it contained is lost
 * @throws {StorageError} ENOSPC, …
 */
export function* writeQed(
  { length, header }: PlannedQed,
  storage: WritableStorage,
): CreationPieces {
  yield* emptyStorage(storage, length, { zeros: length });
  if (header.length > SECTOR_SIZE) {
    storage.writeAt(header, SECTOR_SIZE, header.length - SECTOR_SIZE, SECTOR_SIZE);
  }
  storage.sync();
  storage.writeAt(header, 0, SECTOR_SIZE, 0);
  storage.sync();
}
