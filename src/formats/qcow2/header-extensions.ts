/** Header extensions of qcow2: what follows the header in cluster 0. Source: "Header extensions". */

import { type Decoded, decode, encode, type Field, sizeOf } from "../../binary/struct.ts";
import { FormatError, hex } from "../../errors.ts";
import { decodeChecked } from "../decode-checked.ts";
import type { FeatureName } from "./features.ts";

/** What an extension's data is. */
export const EXTENSION_TYPE = {
  end: 0,
  backingFormat: 0xe279_2aca,
  featureNames: 0x6803_f857,
  bitmaps: 0x2385_2875,
  cryptoHeader: 0x0537_be77,
  dataFile: 0x4441_5441,
} as const;

/** QEMU's limit, bytes. */
export const BACKING_FORMAT_MAX = 15;
export const BITMAPS_MAX = 65535;
/** QEMU's limit: 1024 bytes for each of the most bitmaps. */
export const BITMAP_DIRECTORY_MAX = BITMAPS_MAX * 1024;
export const DATA_FILE_NAME_MAX = 1023;

/** The start of each extension; its data follows. */
// biome-ignore format: a table reads in columns
export const EXTENSION = [
  ["type",   0, "u32", "what the data is"],
  ["length", 4, "u32", "bytes of data; padded to a multiple of 8"],
] as const satisfies readonly Field[];

/** The start of each row of the feature name table. */
// biome-ignore format: a table reads in columns
export const FEATURE_NAME = [
  ["kind", 0, "u8", "0 incompatible, 1 compatible, 2 autoclear; then the bit and 46 bytes of name"],
  ["bit",  1, "u8", "0 to 63"],
] as const satisfies readonly Field[];
/** Bytes of a row, the name included. */
export const FEATURE_NAME_SIZE = 48;

// biome-ignore format: a table reads in columns
const BITMAPS = [
  ["nb_bitmaps",              0, "u32", "1 to 65535"],
  ["reserved",                4, "u32", "0"],
  ["bitmap_directory_size",   8, "u64", "bytes"],
  ["bitmap_directory_offset", 16, "u64", "host offset, cluster aligned"],
] as const satisfies readonly Field[];

// biome-ignore format: a table reads in columns
export const CRYPTO_HEADER = [
  ["offset", 0, "u64", "host offset of the LUKS header, cluster aligned"],
  ["length", 8, "u64", "bytes, with the key material"],
] as const satisfies readonly Field[];

export interface BitmapsExtension {
  readonly count: number;
  readonly directorySize: number;
  readonly directoryOffset: number;
}

export interface HeaderExtensions {
  readonly backingFormat: string | undefined;
  readonly featureNames: readonly FeatureName[];
  readonly dataFileName: string | undefined;
  readonly bitmaps: BitmapsExtension | undefined;
  /** Where the LUKS header is, if there is one. */
  readonly cryptoHeader: CryptoHeaderExtension | undefined;
}

export type CryptoHeaderExtension = Decoded<typeof CRYPTO_HEADER>;

/** Where the extensions are, and what the header says that they depend on. */
export interface ExtensionContext {
  /** Bytes: the header's length. */
  readonly start: number;
  /** Bytes: where the backing file's name starts, or the end of the cluster. */
  readonly end: number;
  /** The bitmaps extension is consistent with the image. */
  readonly bitmapsValid: boolean;
  /** The encryption method is LUKS. */
  readonly luks: boolean;
}

/**
 * Read the extensions in `cluster`, the first cluster of the file.
 *
 * @throws {FormatError} one is longer than its place, or damaged
 */
export function readHeaderExtensions(
  cluster: Uint8Array,
  { start, end, bitmapsValid, luks }: ExtensionContext,
  path: string,
): HeaderExtensions {
  let backingFormat: string | undefined;
  let featureNames: FeatureName[] = [];
  let dataFileName: string | undefined;
  let bitmaps: BitmapsExtension | undefined;
  let cryptoHeader: CryptoHeaderExtension | undefined;
  let offset = start;
  while (offset < end) {
    const data = offset + sizeOf(EXTENSION);
    if (data > end) {
      const reason = `header extension at ${hex(offset)} reaches past the end of the extensions, ${hex(end)}`;
      throw new FormatError(path, reason, { offset });
    }
    const { type, length } = decode(EXTENSION, cluster, "be", offset);
    if (length > end - data) {
      const reason = `header extension ${hex(type)} at ${hex(offset)} has ${length} bytes, only ${end - data} are left`;
      throw new FormatError(path, reason, { offset });
    }
    if (type === EXTENSION_TYPE.end) break;
    const bytes = cluster.subarray(data, data + length);
    switch (type) {
      case EXTENSION_TYPE.backingFormat:
        limitLength(path, "backing format", length, BACKING_FORMAT_MAX, offset);
        // An empty name states nothing, as for QEMU.
        backingFormat = cString(bytes) || undefined;
        break;
      case EXTENSION_TYPE.featureNames:
        featureNames = readFeatureNames(bytes);
        break;
      case EXTENSION_TYPE.dataFile:
        limitLength(path, "data file name", length, DATA_FILE_NAME_MAX, offset);
        dataFileName = cString(bytes);
        break;
      case EXTENSION_TYPE.cryptoHeader:
        if (!luks) {
          const reason = "a crypto header extension in an image that is not encrypted with LUKS";
          throw new FormatError(path, reason, { offset });
        }
        cryptoHeader = readCryptoHeader(bytes, cluster.length, path, offset);
        break;
      case EXTENSION_TYPE.bitmaps:
        if (length !== sizeOf(BITMAPS)) {
          const reason = `bitmaps extension: ${length} bytes, not ${sizeOf(BITMAPS)}`;
          throw new FormatError(path, reason, { offset });
        }
        // A writer that does not know bitmaps left the extension stale, and the autoclear bit clear.
        if (bitmapsValid) bitmaps = readBitmaps(bytes, cluster.length, path, offset);
        break;
      default:
        break;
    }
    offset = data + Math.ceil(length / 8) * 8;
  }
  return { backingFormat, featureNames, dataFileName, bitmaps, cryptoHeader };
}

function readCryptoHeader(
  bytes: Uint8Array,
  clusterSize: number,
  path: string,
  offset: number,
): CryptoHeaderExtension {
  if (bytes.length !== sizeOf(CRYPTO_HEADER)) {
    const reason = `crypto header extension: ${bytes.length} bytes, not ${sizeOf(CRYPTO_HEADER)}`;
    throw new FormatError(path, reason, { offset });
  }
  const header = decodeChecked(CRYPTO_HEADER, bytes, "be", {
    path,
    fileOffset: offset,
    what: "crypto header extension",
  });
  if (header.offset % clusterSize !== 0) {
    const reason = `crypto header offset ${hex(header.offset)} is not a multiple of ${hex(clusterSize)}`;
    throw new FormatError(path, reason, { offset });
  }
  return header;
}

function limitLength(
  path: string,
  what: string,
  length: number,
  limit: number,
  offset: number,
): void {
  if (length <= limit) return;
  throw new FormatError(path, `${what} has ${length} bytes, the limit is ${limit}`, { offset });
}

/** Text up to the first NUL, as C programs read it. */
function cString(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return Buffer.from(end < 0 ? bytes : bytes.subarray(0, end)).toString();
}

function readFeatureNames(bytes: Uint8Array): FeatureName[] {
  const names: FeatureName[] = [];
  for (let at = 0; at + FEATURE_NAME_SIZE <= bytes.length; at += FEATURE_NAME_SIZE) {
    const { kind, bit } = decode(FEATURE_NAME, bytes, "be", at);
    const name = cString(bytes.subarray(at + sizeOf(FEATURE_NAME), at + FEATURE_NAME_SIZE));
    names.push({ kind, bit, name });
  }
  return names;
}

/** The data of the extension that says where the bitmaps are. */
export function encodeBitmapsExtension(extension: BitmapsExtension): Buffer {
  const data = Buffer.alloc(sizeOf(BITMAPS));
  const fields = {
    nb_bitmaps: extension.count,
    reserved: 0,
    bitmap_directory_size: extension.directorySize,
    bitmap_directory_offset: extension.directoryOffset,
  };
  encode(BITMAPS, fields, data, "be");
  return data;
}

function readBitmaps(
  bytes: Uint8Array,
  clusterSize: number,
  path: string,
  offset: number,
): BitmapsExtension {
  const fail = (reason: string): never => {
    throw new FormatError(path, `bitmaps extension: ${reason}`, { offset });
  };
  const fields = decodeChecked(BITMAPS, bytes, "be", {
    path,
    fileOffset: offset,
    what: "bitmaps extension",
  });
  const { nb_bitmaps, bitmap_directory_size, bitmap_directory_offset } = fields;
  if (fields.reserved !== 0) fail(`reserved field is ${fields.reserved}, not 0`);
  if (nb_bitmaps < 1 || nb_bitmaps > BITMAPS_MAX)
    fail(`${nb_bitmaps} bitmaps are outside 1..${BITMAPS_MAX}`);
  if (bitmap_directory_offset % clusterSize !== 0) {
    fail(
      `directory offset ${hex(bitmap_directory_offset)} is not a multiple of ${hex(clusterSize)}`,
    );
  }
  if (bitmap_directory_size > BITMAP_DIRECTORY_MAX) {
    fail(`directory of ${bitmap_directory_size} bytes exceeds ${BITMAP_DIRECTORY_MAX}`);
  }
  return {
    count: nb_bitmaps,
    directorySize: bitmap_directory_size,
    directoryOffset: bitmap_directory_offset,
  };
}
