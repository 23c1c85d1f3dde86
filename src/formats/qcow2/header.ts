/** The qcow2 header: cluster 0 up to the header extensions. */

import { type Decoded, type Field, offsetOf, sizeOf } from "../../binary/struct.ts";
import { FormatError, hex, UnsupportedError } from "../../errors.ts";
import { decodeChecked } from "../decode-checked.ts";
import { AUTOCLEAR, INCOMPATIBLE } from "./features.ts";

export const QCOW2_MAGIC = 0x5146_49fb;

/** qcow2 header, big-endian. Source: qcow2 specification, "Header". */
// biome-ignore format: a table reads in columns
export const HEADER = [
  ["magic",                     0, "u32",    "0x514649fb, \"QFI\\xfb\""],
  ["version",                   4, "u32",    "2 or 3"],
  ["backing_file_offset",       8, "u64",    "0 if there is no backing file; the name is not terminated"],
  ["backing_file_size",        16, "u32",    "bytes of the backing file's name"],
  ["cluster_bits",             20, "u32",    "the cluster size is 1 << cluster_bits"],
  ["size",                     24, "u64",    "virtual size, bytes"],
  ["crypt_method",             32, "u32",    "0 none, 1 AES, 2 LUKS"],
  ["l1_size",                  36, "u32",    "entries of the active L1 table"],
  ["l1_table_offset",          40, "u64",    "host offset, cluster aligned"],
  ["refcount_table_offset",    48, "u64",    "host offset, cluster aligned"],
  ["refcount_table_clusters",  56, "u32",    "clusters of the refcount table"],
  ["nb_snapshots",             60, "u32",    "internal snapshots"],
  ["snapshots_offset",         64, "u64",    "host offset of the snapshot table, cluster aligned"],
  ["incompatible_features",    72, "mask64", "version 3; unknown bit set: refuse to open"],
  ["compatible_features",      80, "mask64", "version 3; unknown bits may be ignored"],
  ["autoclear_features",       88, "mask64", "version 3; a writer clears unknown bits"],
  ["refcount_order",           96, "u32",    "version 3; refcounts are 1 << refcount_order bits wide"],
  ["header_length",           100, "u32",    "version 3; bytes"],
  ["compression_type",        104, "u8",     "0 deflate, 1 zstd; absent in shorter headers"],
] as const satisfies readonly Field[];
export type Header = Decoded<typeof HEADER>;

/** Bytes of the version 2 header, and the least of version 3. */
export const V2_HEADER_LENGTH = sizeOf(HEADER, "snapshots_offset");
/** Bytes of the version 3 header as QEMU writes it since 5.1: with compression_type, padded. */
export const V3_HEADER_LENGTH = 112;
const V3_HEADER_LENGTH_MIN = sizeOf(HEADER, "header_length");

/** The specification's minimum, and QEMU's limit: 2 MiB clusters. */
export const CLUSTER_BITS_MIN = 9;
export const CLUSTER_BITS_MAX = 21;
/** Sub-clusters are at least a sector: QEMU's limit. */
export const EXTENDED_L2_CLUSTER_BITS_MIN = 14;
export const REFCOUNT_ORDER_MAX = 6;
/** QEMU's limits, bytes and entries. */
export const L1_SIZE_MAX = 32 * 1024 * 1024;
export const REFCOUNT_TABLE_SIZE_MAX = 8 * 1024 * 1024;
export const SNAPSHOTS_MAX = 65536;
export const BACKING_FILE_SIZE_MAX = 1023;
const SECTOR_SIZE = 512;

export const CRYPT_METHOD = { none: 0, aes: 1, luks: 2 } as const;
export const COMPRESSION_TYPE = { zlib: 0, zstd: 1 } as const;

/** The header as it is used: version 2 fields that are absent filled in, the size in whole sectors. */
export interface Geometry {
  readonly clusterSize: number;
  readonly clusterBits: number;
  readonly extendedL2: boolean;
  /** Bytes of an L2 entry: 8, or 16 with sub-clusters. */
  readonly l2EntryBytes: number;
  readonly l2Entries: number;
  readonly virtualSize: number;
  readonly refcountBits: number;
}

/**
 * Decode the header at the start of `cluster`.
 *
 * @param cluster the first bytes of the file, at least 112 (zero padded)
 * @throws {FormatError} not qcow2, or a field above 2^53 - 1
 */
export function readHeader(cluster: Uint8Array, path: string): Header {
  const view = new DataView(cluster.buffer, cluster.byteOffset, cluster.byteLength);
  if (view.getUint32(offsetOf(HEADER, "magic")) !== QCOW2_MAGIC) {
    throw new FormatError(path, "is not a qcow2 image: the magic number is missing", { offset: 0 });
  }
  const version = view.getUint32(offsetOf(HEADER, "version"));
  if (version !== 2 && version !== 3) {
    throw new UnsupportedError(
      path,
      `qcow2 version ${version} is not supported, only 2 and 3`,
      at("version"),
    );
  }
  let length = V2_HEADER_LENGTH;
  if (version === 3) {
    length = view.getUint32(offsetOf(HEADER, "header_length"));
    if (length < V3_HEADER_LENGTH_MIN) {
      const reason = `header_length ${length} is less than ${V3_HEADER_LENGTH_MIN}`;
      throw new FormatError(path, reason, at("header_length"));
    }
  }
  const header = decodeChecked(HEADER, cluster, "be", { path, fileOffset: 0, length });
  return version === 3 ? header : { ...header, refcount_order: 4, header_length: V2_HEADER_LENGTH };
}

function at(name: (typeof HEADER)[number][0]): { offset: number } {
  return { offset: offsetOf(HEADER, name) };
}

/**
 * Reject what this driver must not interpret, in QEMU's order, up to the feature bits,
 * whose names are in the header extensions. Returns the cluster size.
 */
export function checkHeaderStart(header: Header, path: string): number {
  const bits = header.cluster_bits;
  if (bits < CLUSTER_BITS_MIN || bits > CLUSTER_BITS_MAX) {
    const reason = `cluster_bits ${bits} is outside ${CLUSTER_BITS_MIN}..${CLUSTER_BITS_MAX}`;
    throw new FormatError(path, reason, at("cluster_bits"));
  }
  const clusterSize = 2 ** bits;
  if (header.header_length > clusterSize) {
    const reason = `header_length ${header.header_length} exceeds the cluster size ${clusterSize}`;
    throw new FormatError(path, reason, at("header_length"));
  }
  if (header.backing_file_offset > clusterSize) {
    const reason = `backing_file_offset ${hex(header.backing_file_offset)} exceeds the cluster size ${hex(clusterSize)}`;
    throw new FormatError(path, reason, at("backing_file_offset"));
  }
  checkCompressionType(header, path);
  return clusterSize;
}

function checkCompressionType(header: Header, path: string): void {
  const type = header.compression_type;
  const flagged = (header.incompatible_features & INCOMPATIBLE.compressionType) !== 0n;
  if (type !== COMPRESSION_TYPE.zlib && type !== COMPRESSION_TYPE.zstd) {
    throw new UnsupportedError(
      path,
      `compression type ${type} is not known`,
      at("compression_type"),
    );
  }
  if ((type !== COMPRESSION_TYPE.zlib) !== flagged) {
    const reason = `compression type ${type} contradicts incompatible feature bit 3, which is ${flagged ? "set" : "clear"}`;
    throw new FormatError(path, reason, at("compression_type"));
  }
}

/** The rest of the checks, after those of the feature bits; tables are only checked for place and size. */
export function checkHeader(header: Header, clusterSize: number, path: string): Geometry {
  const extendedL2 = (header.incompatible_features & INCOMPATIBLE.extendedL2) !== 0n;
  if (extendedL2 && header.cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN) {
    const reason = `cluster_bits ${header.cluster_bits} is below ${EXTENDED_L2_CLUSTER_BITS_MIN}, the least with extended L2 entries`;
    throw new FormatError(path, reason, at("cluster_bits"));
  }
  if (header.refcount_order > REFCOUNT_ORDER_MAX) {
    const reason = `refcount_order ${header.refcount_order} exceeds ${REFCOUNT_ORDER_MAX}`;
    throw new FormatError(path, reason, at("refcount_order"));
  }
  if (header.crypt_method > CRYPT_METHOD.luks) {
    throw new UnsupportedError(
      path,
      `encryption method ${header.crypt_method} is not known`,
      at("crypt_method"),
    );
  }
  const rawData = (header.autoclear_features & AUTOCLEAR.rawExternalData) !== 0n;
  if (rawData && (header.incompatible_features & INCOMPATIBLE.externalDataFile) === 0n) {
    const reason =
      "autoclear feature bit 1 (raw external data) is set without an external data file";
    throw new FormatError(path, reason, at("autoclear_features"));
  }
  checkTables(header, clusterSize, path);

  const l2EntryBytes = extendedL2 ? 16 : 8;
  const l2Entries = clusterSize / l2EntryBytes;
  const virtualSize = header.size - (header.size % SECTOR_SIZE);
  // Of the size as it is written, with what the last sector lacks: as QEMU.
  const l1Needed = Math.ceil(header.size / (clusterSize * l2Entries));
  if (l1Needed > header.l1_size) {
    const reason = `l1_size ${header.l1_size} is less than the ${l1Needed} entries that the size ${header.size} needs`;
    throw new FormatError(path, reason, at("l1_size"));
  }
  return {
    clusterSize,
    clusterBits: header.cluster_bits,
    extendedL2,
    l2EntryBytes,
    l2Entries,
    virtualSize,
    refcountBits: 2 ** header.refcount_order,
  };
}

function checkTables(header: Header, clusterSize: number, path: string): void {
  if (header.refcount_table_clusters === 0) {
    throw new FormatError(path, "refcount_table_clusters is 0", at("refcount_table_clusters"));
  }
  checkTable(path, clusterSize, {
    field: "refcount_table_offset",
    offset: header.refcount_table_offset,
    bytes: header.refcount_table_clusters * clusterSize,
    limit: REFCOUNT_TABLE_SIZE_MAX,
  });
  if (header.nb_snapshots > SNAPSHOTS_MAX) {
    const reason = `nb_snapshots ${header.nb_snapshots} exceeds ${SNAPSHOTS_MAX}`;
    throw new FormatError(path, reason, at("nb_snapshots"));
  }
  checkTable(path, clusterSize, {
    field: "snapshots_offset",
    offset: header.snapshots_offset,
    bytes: 0,
    limit: 0,
  });
  checkTable(path, clusterSize, {
    field: "l1_table_offset",
    offset: header.l1_table_offset,
    bytes: header.l1_size * 8,
    limit: L1_SIZE_MAX,
  });
}

/** A table of the image: where it is and how large it may be, bytes. */
interface TableClaim {
  readonly field: string;
  readonly offset: number;
  readonly bytes: number;
  readonly limit: number;
}

function checkTable(
  path: string,
  clusterSize: number,
  { field, offset, bytes, limit }: TableClaim,
): void {
  if (bytes > limit) {
    throw new FormatError(path, `the table at ${field} has ${bytes} bytes, the limit is ${limit}`, {
      offset,
    });
  }
  if (offset % clusterSize !== 0) {
    const reason = `${field} ${hex(offset)} is not a multiple of the cluster size ${hex(clusterSize)}`;
    throw new FormatError(path, reason, { offset });
  }
  if (!Number.isSafeInteger(offset + bytes)) {
    throw new FormatError(path, `${field} ${hex(offset)} is above the limit of 2^53 - 1`, {
      offset,
    });
  }
}

/** As `checkTable`, for an L1 table of a snapshot. */
export function checkL1Table(
  path: string,
  clusterSize: number,
  offset: number,
  entries: number,
): void {
  checkTable(path, clusterSize, {
    field: "snapshot L1 table offset",
    offset,
    bytes: entries * 8,
    limit: L1_SIZE_MAX,
  });
}

/**
 * The backing file's name, or undefined.
 *
 * @param cluster the first cluster of the file, whole
 */
export function readBackingName(
  header: Header,
  cluster: Uint8Array,
  path: string,
): string | undefined {
  const offset = header.backing_file_offset;
  if (offset === 0) return undefined;
  const limit = Math.min(BACKING_FILE_SIZE_MAX, cluster.length - offset);
  if (header.backing_file_size > limit) {
    const reason = `backing_file_size ${header.backing_file_size} exceeds ${limit}`;
    throw new FormatError(path, reason, at("backing_file_size"));
  }
  // As C programs read it: up to the first NUL.
  const name = Buffer.from(cluster.subarray(offset, offset + header.backing_file_size)).toString();
  return name.split("\0", 1)[0];
}
