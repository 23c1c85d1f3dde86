/**
 * Lays out a qcow2 header and its extensions byte by byte, so that a test can state any of them wrong.
 *
 * Written from the qcow2 specification ("Header", "Header extensions"), without production code.
 */

/** A field value: converted to two's complement of the field's width, so -1 sets all bits. */
export type FieldValue = number | bigint;

/** Every header field: byte offset and size in bytes. Big-endian. */
// biome-ignore format: a table reads in columns
export const QCOW2_HEADER_FIELDS = {
  magic:                   { offset: 0,   size: 4 },
  version:                 { offset: 4,   size: 4 },
  backing_file_offset:     { offset: 8,   size: 8 },
  backing_file_size:       { offset: 16,  size: 4 },
  cluster_bits:            { offset: 20,  size: 4 },
  size:                    { offset: 24,  size: 8 },
  crypt_method:            { offset: 32,  size: 4 },
  l1_size:                 { offset: 36,  size: 4 },
  l1_table_offset:         { offset: 40,  size: 8 },
  refcount_table_offset:   { offset: 48,  size: 8 },
  refcount_table_clusters: { offset: 56,  size: 4 },
  nb_snapshots:            { offset: 60,  size: 4 },
  snapshots_offset:        { offset: 64,  size: 8 },
  incompatible_features:   { offset: 72,  size: 8 },
  compatible_features:     { offset: 80,  size: 8 },
  autoclear_features:      { offset: 88,  size: 8 },
  refcount_order:          { offset: 96,  size: 4 },
  header_length:           { offset: 100, size: 4 },
  compression_type:        { offset: 104, size: 1 },
} as const;

export type Qcow2HeaderField = keyof typeof QCOW2_HEADER_FIELDS;

/** Values for any subset of the header fields. */
export type Qcow2HeaderFields = { [F in Qcow2HeaderField]?: FieldValue | undefined };

/** Names of the fields a header of `version` has: the v2 header ends before incompatible_features. */
export function qcow2HeaderFieldNames(version: 2 | 3): Qcow2HeaderField[] {
  return Object.entries(QCOW2_HEADER_FIELDS)
    .filter(([, field]) => version === 3 || field.offset < 72)
    .map(([name]) => name)
    .filter(isHeaderField);
}

function isHeaderField(name: string): name is Qcow2HeaderField {
  return name in QCOW2_HEADER_FIELDS;
}

/** "QFI\xfb". */
export const QCOW2_MAGIC = 0x514649fb;

export const INCOMPATIBLE_DIRTY = 1n << 0n;
export const INCOMPATIBLE_CORRUPT = 1n << 1n;
export const INCOMPATIBLE_DATA_FILE = 1n << 2n;
export const INCOMPATIBLE_COMPRESSION_TYPE = 1n << 3n;
export const INCOMPATIBLE_EXTENDED_L2 = 1n << 4n;
export const AUTOCLEAR_BITMAPS = 1n << 0n;
export const AUTOCLEAR_RAW_DATA_FILE = 1n << 1n;

export const EXTENSION_END = 0x00000000;
export const EXTENSION_BACKING_FORMAT = 0xe2792aca;
export const EXTENSION_FEATURE_NAMES = 0x6803f857;
export const EXTENSION_BITMAPS = 0x23852875;
export const EXTENSION_CRYPTO_HEADER = 0x0537be77;
export const EXTENSION_DATA_FILE = 0x44415441;

/** A header extension; `length` overrides the length that is written, not the bytes that follow. */
export interface Qcow2Extension {
  readonly type: number;
  readonly data: Uint8Array | string;
  readonly length?: number | undefined;
}

/** Writes an unsigned big-endian integer of `size` bytes (1 to 8). */
export function writeBe(bytes: Buffer, offset: number, size: number, value: FieldValue): void {
  let rest = BigInt.asUintN(size * 8, BigInt(value));
  for (let at = offset + size - 1; at >= offset; at--) {
    bytes[at] = Number(rest & 0xffn);
    rest >>= 8n;
  }
}

/** Reads an unsigned big-endian integer of `size` bytes. */
export function readBe(bytes: Uint8Array, offset: number, size: number): bigint {
  let value = 0n;
  for (let at = offset; at < offset + size; at++) {
    value = (value << 8n) | BigInt(bytes[at] ?? 0);
  }
  return value;
}

/** Writes one header field into an image. */
export function writeQcow2HeaderField(
  bytes: Buffer,
  name: Qcow2HeaderField,
  value: FieldValue,
): void {
  const field = QCOW2_HEADER_FIELDS[name];
  writeBe(bytes, field.offset, field.size, value);
}

/** One extension as it stands in the file: type, length, data, padding to 8 bytes. */
export function encodeExtension(extension: Qcow2Extension): Buffer {
  const data = Buffer.from(extension.data);
  const bytes = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
  writeBe(bytes, 0, 4, extension.type);
  writeBe(bytes, 4, 4, extension.length ?? data.length);
  data.copy(bytes, 8);
  return bytes;
}

/** A row of the feature name table. `kind`: 0 incompatible, 1 compatible, 2 autoclear. */
export interface FeatureName {
  readonly kind: number;
  readonly bit: number;
  readonly name: string | Uint8Array;
}

/** The feature name table extension: 48 bytes per row, names cut to 46 bytes. */
export function featureNameTable(rows: readonly FeatureName[]): Qcow2Extension {
  const data = Buffer.alloc(rows.length * 48);
  for (const [index, row] of rows.entries()) {
    data[index * 48] = row.kind;
    data[index * 48 + 1] = row.bit;
    Buffer.from(row.name).copy(data, index * 48 + 2, 0, 46);
  }
  return { type: EXTENSION_FEATURE_NAMES, data };
}

/** The bitmaps extension: 24 bytes. */
export function bitmapsExtension(at: {
  readonly count: FieldValue;
  readonly directorySize: FieldValue;
  readonly directoryOffset: FieldValue;
}): Qcow2Extension {
  const data = Buffer.alloc(24);
  writeBe(data, 0, 4, at.count);
  writeBe(data, 8, 8, at.directorySize);
  writeBe(data, 16, 8, at.directoryOffset);
  return { type: EXTENSION_BITMAPS, data };
}
