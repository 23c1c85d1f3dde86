/**
 * Builds small QED images in memory, byte by byte from the specification and without production code.
 * The default product is valid (qemu-img check finds nothing); overrides break exactly one thing.
 *
 * Layout, in clusters: header (with the backing file name) | L1 | L2 tables and data clusters
 */

import { writeFileSync } from "node:fs";

/** A field value: converted to two's complement of the field's width, so -1 sets all bits. */
type FieldValue = number | bigint;

/** Every header field: byte offset and size in bytes. Little-endian. */
// biome-ignore format: a table reads in columns
export const QED_HEADER_FIELDS = {
  magic:                   { offset: 0,  size: 4 },
  cluster_size:            { offset: 4,  size: 4 },
  table_size:              { offset: 8,  size: 4 },
  header_size:             { offset: 12, size: 4 },
  features:                { offset: 16, size: 8 },
  compat_features:         { offset: 24, size: 8 },
  autoclear_features:      { offset: 32, size: 8 },
  l1_table_offset:         { offset: 40, size: 8 },
  image_size:              { offset: 48, size: 8 },
  backing_filename_offset: { offset: 56, size: 4 },
  backing_filename_size:   { offset: 60, size: 4 },
} as const;

export type QedHeaderField = keyof typeof QED_HEADER_FIELDS;

/** All field names, in header order. */
export function qedHeaderFieldNames(): QedHeaderField[] {
  return Object.keys(QED_HEADER_FIELDS).filter(
    (name): name is QedHeaderField => name in QED_HEADER_FIELDS,
  );
}

/** "QED\0", read little-endian. */
export const QED_MAGIC = 0x00444551;
export const QED_FEATURE_BACKING_FILE = 1;
export const QED_FEATURE_NEED_CHECK = 2;
export const QED_FEATURE_BACKING_NO_PROBE = 4;

/** What one guest cluster is. Bytes shorter than a cluster are padded with zeros. */
export type QedCluster =
  | { readonly kind: "data"; readonly bytes: Uint8Array }
  | { readonly kind: "zero" }
  | { readonly kind: "entry"; readonly entry: FieldValue };

export interface QedOptions {
  /** Bytes. */
  readonly clusterSize?: number | undefined;
  /** Clusters per L1 or L2 table. */
  readonly tableClusters?: number | undefined;
  /** Clusters of the header area. */
  readonly headerClusters?: number | undefined;
  readonly virtualSize?: number | undefined;
  readonly backingFile?: string | Uint8Array | undefined;
  /** "raw" sets the no-probe feature. */
  readonly backingFormat?: "raw" | "probed" | undefined;
  /** Feature bits besides those that other options imply. */
  readonly features?: number | bigint | undefined;
  /** Content by guest cluster index; what is not listed is unallocated. */
  readonly clusters?: Readonly<Record<number, QedCluster>> | undefined;
  /** Written over the header, last. */
  readonly header?: { [F in QedHeaderField]?: FieldValue | undefined } | undefined;
}

/** A named byte range of the image file. */
export interface QedRegion {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
}

/** A finished image: its bytes, where its structures are, and setters that change one thing in place. */
export class QedImage {
  readonly bytes: Buffer;
  readonly regions: readonly QedRegion[];
  readonly clusterSize: number;
  readonly #tableEntries: number;

  constructor(bytes: Buffer, regions: readonly QedRegion[], geometry: QedGeometry) {
    this.bytes = bytes;
    this.regions = regions;
    this.clusterSize = geometry.clusterSize;
    this.#tableEntries = geometry.tableEntries;
  }

  /** The region called `name` ("header", "l1", "l2 0", "data 5"); throws if there is none. */
  region(name: string): QedRegion {
    const found = this.regions.find((region) => region.name === name);
    if (found === undefined) {
      throw new Error(
        `no region ${name} among ${this.regions.map((region) => region.name).join(", ")}`,
      );
    }
    return found;
  }

  header(field: QedHeaderField): bigint {
    const { offset, size } = QED_HEADER_FIELDS[field];
    return size === 4
      ? BigInt(this.bytes.readUInt32LE(offset))
      : this.bytes.readBigUInt64LE(offset);
  }

  setHeader(field: QedHeaderField, value: FieldValue): this {
    const { offset, size } = QED_HEADER_FIELDS[field];
    writeLe(this.bytes, offset, size, value);
    return this;
  }

  setU64(offset: number, value: FieldValue): this {
    writeLe(this.bytes, offset, 8, value);
    return this;
  }

  setL1(l1Index: number, value: FieldValue): this {
    return this.setU64(this.region("l1").offset + l1Index * 8, value);
  }

  /** Sets the L2 entry of a guest cluster; its L2 table must exist. */
  setL2(guestCluster: number, value: FieldValue): this {
    const table = this.region(`l2 ${Math.floor(guestCluster / this.#tableEntries)}`);
    return this.setU64(table.offset + (guestCluster % this.#tableEntries) * 8, value);
  }

  /** A copy of the first `length` bytes. */
  truncated(length: number): Buffer {
    return Buffer.from(this.bytes.subarray(0, Math.max(0, length)));
  }

  write(path: string): string {
    writeFileSync(path, this.bytes);
    return path;
  }
}

interface QedGeometry {
  readonly clusterSize: number;
  readonly tableEntries: number;
}

/** Builds an image. */
export function buildQed(options: QedOptions = {}): QedImage {
  const clusterSize = options.clusterSize ?? 65536;
  const tableClusters = options.tableClusters ?? 4;
  const tableEntries = (clusterSize * tableClusters) / 8;
  const headerClusters = options.headerClusters ?? 1;
  const regions: QedRegion[] = [];
  let end = 0;
  const allocate = (name: string, clusters: number): number => {
    const offset = end;
    regions.push({ name, offset, length: clusters * clusterSize });
    end += clusters * clusterSize;
    return offset;
  };
  allocate("header", headerClusters);
  const l1 = allocate("l1", tableClusters);
  const entries: [offset: number, entry: FieldValue][] = [];
  const contents: [offset: number, content: Uint8Array][] = [];
  const tables = new Map<number, number>();
  for (const [key, cluster] of Object.entries(options.clusters ?? {})) {
    const l1Index = Math.floor(Number(key) / tableEntries);
    let table = tables.get(l1Index);
    if (table === undefined) {
      table = allocate(`l2 ${l1Index}`, tableClusters);
      tables.set(l1Index, table);
      entries.push([l1 + l1Index * 8, table]);
    }
    const at = table + (Number(key) % tableEntries) * 8;
    if (cluster.kind === "data") {
      const host = allocate(`data ${key}`, 1);
      contents.push([host, cluster.bytes]);
      entries.push([at, host]);
    } else {
      entries.push([at, cluster.kind === "zero" ? 1 : cluster.entry]);
    }
  }
  const bytes = Buffer.alloc(end);
  for (const [offset, content] of contents) {
    Buffer.from(content).copy(bytes, offset, 0, clusterSize);
  }
  for (const [offset, entry] of entries) {
    writeLe(bytes, offset, 8, entry);
  }
  const image = new QedImage(bytes, regions, { clusterSize, tableEntries });
  writeQedHeader(image, options, l1);
  return image;
}

/** The bytes of an image. */
export function qedBytes(options: QedOptions = {}): Buffer {
  return buildQed(options).bytes;
}

/** Backing file name straight behind the 64-byte header, as QEMU puts it. */
const BACKING_NAME_OFFSET = 64;

function writeQedHeader(image: QedImage, options: QedOptions, l1TableOffset: number): void {
  const backing = Buffer.from(options.backingFile ?? "");
  backing.copy(image.bytes, BACKING_NAME_OFFSET);
  const backed = options.backingFile !== undefined;
  const features =
    (backed ? QED_FEATURE_BACKING_FILE : 0) |
    (options.backingFormat === "raw" ? QED_FEATURE_BACKING_NO_PROBE : 0);
  const fields: { [F in QedHeaderField]?: FieldValue | undefined } = {
    magic: QED_MAGIC,
    cluster_size: image.clusterSize,
    table_size: options.tableClusters ?? 4,
    header_size: options.headerClusters ?? 1,
    features: BigInt(features) | BigInt(options.features ?? 0),
    l1_table_offset: l1TableOffset,
    image_size: options.virtualSize ?? 1024 * 1024,
    backing_filename_offset: backed ? BACKING_NAME_OFFSET : 0,
    backing_filename_size: backing.length,
    ...options.header,
  };
  for (const name of qedHeaderFieldNames()) {
    const value = fields[name];
    if (value !== undefined) {
      image.setHeader(name, value);
    }
  }
}

function writeLe(bytes: Buffer, offset: number, size: number, value: FieldValue): void {
  let rest = BigInt.asUintN(size * 8, BigInt(value));
  for (let at = offset; at < offset + size; at++) {
    bytes[at] = Number(rest & 0xffn);
    rest >>= 8n;
  }
}
