/**
 * Cluster 0 of a new image: header, extensions, the backing file's name.
 * Source: qcow2 specification, "Header", "Header extensions".
 */

import { encode, sizeOf } from "../../binary/struct.ts";
import { UsageError } from "../../errors.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { BackingReference, DataFileReference } from "../driver.ts";
import type { LuksWanted } from "../encryption/luks-area.ts";
import type { CreateLayout } from "./create-layout.ts";
import {
  AUTOCLEAR,
  COMPATIBLE_LAZY_REFCOUNTS,
  FEATURE_KIND,
  type FeatureName,
  INCOMPATIBLE,
} from "./features.ts";
import {
  COMPRESSION_TYPE,
  CRYPT_METHOD,
  HEADER,
  QCOW2_MAGIC,
  V2_HEADER_LENGTH,
  V3_HEADER_LENGTH,
} from "./header.ts";
import {
  CRYPTO_HEADER,
  EXTENSION,
  EXTENSION_TYPE,
  FEATURE_NAME,
  FEATURE_NAME_SIZE,
} from "./header-extensions.ts";

/** What a new header says besides where things are. */
export interface CreateHeader {
  readonly version: 2 | 3;
  /** Bytes. */
  readonly virtualSize: number;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
  readonly lazyRefcounts: boolean;
  readonly compressionType: keyof typeof COMPRESSION_TYPE;
  readonly backingFile: BackingReference | undefined;
  readonly dataFile: DataFileReference | undefined;
  /** Default: none. */
  readonly encryption?: CreateEncryption | undefined;
}

/** How the data of a new image is encrypted. */
export type CreateEncryption =
  | { readonly format: "aes" }
  | { readonly format: "luks"; readonly luks: LuksWanted };

/** As QEMU: smaller clusters keep their room for names of files. */
const FEATURE_NAMES_ABOVE_CLUSTER_SIZE = 4096;

/** The names that QEMU gives the features, for programs that do not know them. */
// biome-ignore format: a table reads in columns
const FEATURE_NAMES: readonly FeatureName[] = [
  { kind: FEATURE_KIND.incompatible, bit: 0, name: "dirty bit" },
  { kind: FEATURE_KIND.incompatible, bit: 1, name: "corrupt bit" },
  { kind: FEATURE_KIND.incompatible, bit: 2, name: "external data file" },
  { kind: FEATURE_KIND.incompatible, bit: 3, name: "compression type" },
  { kind: FEATURE_KIND.incompatible, bit: 4, name: "extended L2 entries" },
  { kind: FEATURE_KIND.compatible,   bit: 0, name: "lazy refcounts" },
  { kind: FEATURE_KIND.autoclear,    bit: 0, name: "bitmaps" },
  { kind: FEATURE_KIND.autoclear,    bit: 1, name: "raw external data" },
];

/**
 * The first cluster.
 *
 * @throws {UsageError} the names do not fit
 */
export function encodeHeaderCluster(
  header: CreateHeader,
  layout: CreateLayout,
  path: string,
): NativeBuffer {
  const { clusterSize, backingFile } = header;
  const length = header.version === 2 ? V2_HEADER_LENGTH : V3_HEADER_LENGTH;
  const extensions = encodeExtensions(header, layout);
  const name = Buffer.from(backingFile?.name ?? "");
  const nameOffset = length + extensions.length;
  if (nameOffset + name.length > clusterSize) {
    const reason = `the header with the names of other files has ${nameOffset + name.length} bytes, more than a cluster of ${clusterSize}`;
    throw new UsageError(path, `${reason}; use larger clusters (-o cluster_size)`);
  }
  const cluster = NativeBuffer.allocate(clusterSize);
  encode(
    HEADER,
    {
      magic: QCOW2_MAGIC,
      version: header.version,
      backing_file_offset: backingFile === undefined ? 0 : nameOffset,
      backing_file_size: name.length,
      cluster_bits: Math.log2(clusterSize),
      size: header.virtualSize,
      crypt_method: CRYPT_METHOD[header.encryption?.format ?? "none"],
      l1_size: layout.l1Entries,
      l1_table_offset: layout.l1Offset,
      refcount_table_offset: layout.refcountTableOffset,
      refcount_table_clusters: layout.refcountTableClusters,
      nb_snapshots: 0,
      snapshots_offset: 0,
    },
    cluster.bytes,
    "be",
  );
  if (header.version === 3) encodeVersion3(header, cluster.bytes);
  cluster.bytes.set(extensions, length);
  cluster.bytes.set(name, nameOffset);
  return cluster;
}

function encodeVersion3(header: CreateHeader, cluster: Uint8Array): void {
  let incompatible = 0n;
  if (header.dataFile !== undefined) incompatible |= INCOMPATIBLE.externalDataFile;
  if (header.compressionType !== "zlib") incompatible |= INCOMPATIBLE.compressionType;
  if (header.extendedL2) incompatible |= INCOMPATIBLE.extendedL2;
  encode(
    HEADER,
    {
      incompatible_features: incompatible,
      compatible_features: header.lazyRefcounts ? COMPATIBLE_LAZY_REFCOUNTS : 0n,
      autoclear_features: header.dataFile?.raw === true ? AUTOCLEAR.rawExternalData : 0n,
      refcount_order: Math.log2(header.refcountBits),
      header_length: V3_HEADER_LENGTH,
      compression_type: COMPRESSION_TYPE[header.compressionType],
    },
    cluster,
    "be",
  );
}

/** All extensions with the end marker, in QEMU's order. */
function encodeExtensions(
  { version, clusterSize, backingFile, dataFile }: CreateHeader,
  { luksOffset, luksBytes }: CreateLayout,
): Buffer {
  const extensions: Buffer[] = [];
  if (backingFile?.format !== undefined) {
    extensions.push(encodeExtension("backingFormat", Buffer.from(backingFile.format)));
  }
  if (dataFile !== undefined) {
    extensions.push(encodeExtension("dataFile", Buffer.from(dataFile.name)));
  }
  if (luksBytes > 0) {
    const pointer = Buffer.alloc(sizeOf(CRYPTO_HEADER));
    encode(CRYPTO_HEADER, { offset: luksOffset, length: luksBytes }, pointer, "be");
    extensions.push(encodeExtension("cryptoHeader", pointer));
  }
  if (version === 3 && clusterSize > FEATURE_NAMES_ABOVE_CLUSTER_SIZE) {
    extensions.push(encodeExtension("featureNames", encodeFeatureNames()));
  }
  extensions.push(encodeExtension("end", Buffer.alloc(0)));
  return Buffer.concat(extensions);
}

/** One extension with its padding. */
export function encodeExtension(type: keyof typeof EXTENSION_TYPE, data: Buffer): Buffer {
  const extension = Buffer.alloc(sizeOf(EXTENSION) + Math.ceil(data.length / 8) * 8);
  encode(EXTENSION, { type: EXTENSION_TYPE[type], length: data.length }, extension, "be");
  data.copy(extension, sizeOf(EXTENSION));
  return extension;
}

function encodeFeatureNames(): Buffer {
  const table = Buffer.alloc(FEATURE_NAMES.length * FEATURE_NAME_SIZE);
  FEATURE_NAMES.forEach(({ kind, bit, name }, index) => {
    const at = index * FEATURE_NAME_SIZE;
    encode(FEATURE_NAME, { kind, bit }, table, "be", at);
    table.write(name, at + sizeOf(FEATURE_NAME));
  });
  return table;
}
