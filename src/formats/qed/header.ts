/** The QED header. All fields are little-endian. Source: QED specification, "Header". */

import { type Decoded, type Field, offsetOf, sizeOf } from "../../binary/struct.ts";
import { FormatError, hex, UnsupportedError } from "../../errors.ts";
import { decodeChecked } from "../decode-checked.ts";

export const QED_MAGIC = 0x0044_4551;

// biome-ignore format: a table reads in columns
export const HEADER = [
  ["magic",                    0, "u32",    "\"QED\\0\""],
  ["cluster_size",             4, "u32",    "bytes, a power of two"],
  ["table_size",               8, "u32",    "clusters of an L1 or L2 table, a power of two"],
  ["header_size",             12, "u32",    "clusters of the header"],
  ["features",                16, "mask64", "unknown bit set: refuse to open"],
  ["compat_features",         24, "mask64", "unknown bits may be ignored"],
  ["autoclear_features",      32, "mask64", "a writer clears unknown bits"],
  ["l1_table_offset",         40, "u64",    "host offset, cluster aligned"],
  ["image_size",              48, "u64",    "virtual size, bytes, a multiple of 512"],
  ["backing_filename_offset", 56, "u32",    "bytes from the start of the file"],
  ["backing_filename_size",   60, "u32",    "bytes; the name is not terminated"],
] as const satisfies readonly Field[];
export type Header = Decoded<typeof HEADER>;

export const HEADER_SIZE = sizeOf(HEADER);

export const FEATURE = {
  backingFile: 1n << 0n,
  needCheck: 1n << 1n,
  backingFormatNoProbe: 1n << 2n,
} as const;
const FEATURES_KNOWN = Object.values(FEATURE).reduce((mask, bit) => mask | bit, 0n);

export const CLUSTER_SIZE_MIN = 4 * 1024;
export const CLUSTER_SIZE_MAX = 64 * 1024 * 1024;
export const TABLE_SIZE_MAX = 16;
const SECTOR_SIZE = 512;
/** QEMU's limit, bytes: that of a path. */
export const BACKING_FILENAME_MAX = 4095;

/**
 * Decode the header and reject what this driver must not interpret.
 *
 * @param head the first bytes of the file, at least 64
 * @param fileLength bytes
 * @throws {FormatError | UnsupportedError}
 */
export function readHeader(head: Uint8Array, fileLength: number, path: string): Header {
  if (fileLength < HEADER_SIZE) {
    throw new FormatError(path, `has ${fileLength} bytes, less than a QED header`, { offset: 0 });
  }
  const header = decodeChecked(HEADER, head, "le", { path, fileOffset: 0 });
  if (header.magic !== QED_MAGIC) {
    throw new FormatError(path, "is not a QED image: the magic number is missing", { offset: 0 });
  }
  const unknown = header.features & ~FEATURES_KNOWN;
  if (unknown !== 0n) {
    throw new UnsupportedError(path, `features ${hex(unknown)} are not known`, at("features"));
  }
  checkGeometry(header, path);
  checkPlaces(header, fileLength, path);
  return header;
}

function at(name: (typeof HEADER)[number][0]): { offset: number } {
  return { offset: offsetOf(HEADER, name) };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}

function checkGeometry(header: Header, path: string): void {
  const { cluster_size, table_size, image_size } = header;
  if (
    !isPowerOfTwo(cluster_size) ||
    cluster_size < CLUSTER_SIZE_MIN ||
    cluster_size > CLUSTER_SIZE_MAX
  ) {
    const reason = `cluster_size ${cluster_size} is not a power of two in ${CLUSTER_SIZE_MIN}..${CLUSTER_SIZE_MAX}`;
    throw new FormatError(path, reason, at("cluster_size"));
  }
  if (!isPowerOfTwo(table_size) || table_size > TABLE_SIZE_MAX) {
    const reason = `table_size ${table_size} is not a power of two in 1..${TABLE_SIZE_MAX}`;
    throw new FormatError(path, reason, at("table_size"));
  }
  if (image_size % SECTOR_SIZE !== 0) {
    throw new FormatError(
      path,
      `image_size ${image_size} is not a multiple of ${SECTOR_SIZE}`,
      at("image_size"),
    );
  }
  const limit = tableEntries(header) ** 2 * cluster_size;
  if (image_size > limit) {
    throw new FormatError(
      path,
      `image_size ${image_size} exceeds what the tables map, ${limit}`,
      at("image_size"),
    );
  }
}

function checkPlaces(header: Header, fileLength: number, path: string): void {
  const { cluster_size, header_size, l1_table_offset } = header;
  const headerBytes = header_size * cluster_size;
  if (headerBytes > 0xffff_ffff) {
    const reason = `header_size ${header_size} clusters exceed 4 GiB`;
    throw new FormatError(path, reason, at("header_size"));
  }
  if (l1_table_offset % cluster_size !== 0) {
    const reason = `l1_table_offset ${hex(l1_table_offset)} is not a multiple of the cluster size ${hex(cluster_size)}`;
    throw new FormatError(path, reason, at("l1_table_offset"));
  }
  const tableBytes = tableEntries(header) * 8;
  const fileEnd = wholeClusters(fileLength, cluster_size);
  if (l1_table_offset < headerBytes || l1_table_offset + tableBytes > fileEnd) {
    const reason = `L1 table ${hex(l1_table_offset)}..${hex(l1_table_offset + tableBytes)} is outside ${hex(headerBytes)}..${hex(fileEnd)}`;
    throw new FormatError(path, reason, at("l1_table_offset"));
  }
  if ((header.features & FEATURE.backingFile) === 0n) return;
  const { backing_filename_offset: offset, backing_filename_size: size } = header;
  if (offset + size > headerBytes || offset + size > fileLength) {
    const reason = `backing file name ${hex(offset)}..${hex(offset + size)} is outside the header`;
    throw new FormatError(path, reason, at("backing_filename_offset"));
  }
  if (size > BACKING_FILENAME_MAX) {
    const reason = `backing_filename_size ${size} exceeds ${BACKING_FILENAME_MAX}`;
    throw new FormatError(path, reason, at("backing_filename_size"));
  }
}

/**
 * Where the clusters of a file end, bytes. As QEMU: the file counts in sectors, the last one maybe
 * in part, and a cluster that lacks sectors does not count.
 */
export function wholeClusters(fileLength: number, clusterSize: number): number {
  const sectors = Math.ceil(fileLength / SECTOR_SIZE) * SECTOR_SIZE;
  return sectors - (sectors % clusterSize);
}

/** Entries of an L1 or L2 table. */
export function tableEntries(header: Header): number {
  return (header.table_size * header.cluster_size) / 8;
}
