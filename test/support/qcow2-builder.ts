/**
 * Builds small qcow2 images in memory, byte by byte from the specification and without production
 * code. The default product is valid (qemu-img check finds nothing); overrides break exactly one thing.
 *
 * Layout, in clusters: header | refcount table | refcount blocks | L1 | L2 tables, data and compressed
 * clusters | per snapshot: L1, own L2 tables and data | snapshot table
 */

import { writeFileSync } from "node:fs";
import {
  EXTENSION_BACKING_FORMAT,
  EXTENSION_DATA_FILE,
  EXTENSION_END,
  encodeExtension,
  type FieldValue,
  INCOMPATIBLE_COMPRESSION_TYPE,
  INCOMPATIBLE_DATA_FILE,
  INCOMPATIBLE_EXTENDED_L2,
  QCOW2_HEADER_FIELDS,
  QCOW2_MAGIC,
  type Qcow2Extension,
  type Qcow2HeaderField,
  type Qcow2HeaderFields,
  qcow2HeaderFieldNames,
  readBe,
  writeBe,
  writeQcow2HeaderField,
} from "./qcow2-header-builder.ts";
import {
  encodeSnapshot,
  type Qcow2Snapshot,
  SNAPSHOT_FIELDS,
  type SnapshotField,
} from "./qcow2-snapshot-builder.ts";
import {
  addReferences,
  buildTree,
  type ImageRegion,
  type Qcow2Cluster,
  Qcow2Layout,
  type Tree,
  writeTree,
} from "./qcow2-tree-builder.ts";

export interface Qcow2Options {
  readonly version?: 2 | 3 | undefined;
  readonly clusterBits?: number | undefined;
  readonly virtualSize?: number | undefined;
  readonly refcountOrder?: number | undefined;
  readonly extendedL2?: boolean | undefined;
  /** 0 deflate, 1 zstd; sets the incompatible bit. */
  readonly compressionType?: 0 | 1 | undefined;
  readonly headerLength?: number | undefined;
  /** Entries of the active L1 table; left out: as many as the virtual size needs. */
  readonly l1Entries?: number | undefined;
  readonly backingFile?: string | Uint8Array | undefined;
  readonly backingFormat?: string | Uint8Array | undefined;
  /** Name of an external data file: clusters then go to `Qcow2Image.dataFile`. */
  readonly dataFile?: string | Uint8Array | undefined;
  /** Feature bits besides those that other options imply. */
  readonly incompatible?: bigint | undefined;
  readonly extensions?: readonly Qcow2Extension[] | undefined;
  /** No end marker after the extensions. */
  readonly endMarker?: "written" | "missing" | undefined;
  readonly snapshots?: readonly Qcow2Snapshot[] | undefined;
  /** Content by guest cluster index; what is not listed is unallocated. */
  readonly clusters?: Readonly<Record<number, Qcow2Cluster>> | undefined;
  /** Written over the header, last. */
  readonly header?: Qcow2HeaderFields | undefined;
}

/** A finished image: its bytes, where its structures are, and setters that change one thing in place. */
export class Qcow2Image {
  readonly bytes: Buffer;
  /** Content of the external data file, if there is one. */
  readonly dataFile: Buffer | undefined;
  readonly regions: readonly ImageRegion[];
  readonly clusterSize: number;
  readonly #l2EntryBytes: number;
  readonly #refcountBits: number;

  constructor(layout: Qcow2Layout, bytes: Buffer) {
    this.bytes = bytes;
    this.dataFile = layout.dataFile;
    this.regions = layout.regions;
    this.clusterSize = layout.clusterSize;
    this.#l2EntryBytes = layout.l2EntryBytes;
    this.#refcountBits = layout.refcountBits;
  }

  /** The region called `name` ("header", "l1", "l2 0", "data 5", …); throws if there is none. */
  region(name: string): ImageRegion {
    const found = this.regions.find((region) => region.name === name);
    if (found === undefined) {
      throw new Error(
        `no region ${name} among ${this.regions.map((region) => region.name).join(", ")}`,
      );
    }
    return found;
  }

  header(field: Qcow2HeaderField): bigint {
    return readBe(this.bytes, QCOW2_HEADER_FIELDS[field].offset, QCOW2_HEADER_FIELDS[field].size);
  }

  setHeader(field: Qcow2HeaderField, value: FieldValue): this {
    writeQcow2HeaderField(this.bytes, field, value);
    return this;
  }

  setU64(offset: number, value: FieldValue): this {
    writeBe(this.bytes, offset, 8, value);
    return this;
  }

  getU64(offset: number): bigint {
    return readBe(this.bytes, offset, 8);
  }

  l1EntryOffset(l1Index: number): number {
    return this.region("l1").offset + l1Index * 8;
  }

  setL1(l1Index: number, value: FieldValue): this {
    return this.setU64(this.l1EntryOffset(l1Index), value);
  }

  /** File offset of the L2 entry of a guest cluster; its L2 table must exist. */
  l2EntryOffset(guestCluster: number): number {
    const l2Entries = this.clusterSize / this.#l2EntryBytes;
    const table = this.region(`l2 ${Math.floor(guestCluster / l2Entries)}`);
    return table.offset + (guestCluster % l2Entries) * this.#l2EntryBytes;
  }

  setL2(guestCluster: number, value: FieldValue, bitmap?: FieldValue): this {
    const offset = this.l2EntryOffset(guestCluster);
    this.setU64(offset, value);
    return bitmap === undefined ? this : this.setU64(offset + 8, bitmap);
  }

  getL2(guestCluster: number): bigint {
    return this.getU64(this.l2EntryOffset(guestCluster));
  }

  setRefcountTable(index: number, value: FieldValue): this {
    return this.setU64(this.region("refcount table").offset + index * 8, value);
  }

  /** Sets the refcount of a host cluster, in the refcount block that the builder wrote for it. */
  setRefcount(hostCluster: number, value: FieldValue): this {
    const perBlock = (this.clusterSize * 8) / this.#refcountBits;
    const block = this.region(`refcount block ${Math.floor(hostCluster / perBlock)}`);
    writeRefcount(
      this.bytes,
      block.offset,
      { index: hostCluster % perBlock, bits: this.#refcountBits },
      value,
    );
    return this;
  }

  setSnapshot(index: number, field: SnapshotField, value: FieldValue): this {
    const { offset, size } = SNAPSHOT_FIELDS[field];
    writeBe(this.bytes, this.region(`snapshot ${index}`).offset + offset, size, value);
    return this;
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

/** Builds an image. Every region of the result starts where the layout above says. */
export function buildQcow2(options: Qcow2Options = {}): Qcow2Image {
  // The refcount structures come first in the file, so their size has to be guessed; grow until it fits.
  let refcountBlocks = 1;
  for (;;) {
    const layout = new Qcow2Layout(options, refcountBlocks);
    const image = layOut(layout, options);
    if (layout.clusterCount <= refcountBlocks * layout.refcountsPerBlock) {
      return image;
    }
    refcountBlocks = Math.ceil(layout.clusterCount / layout.refcountsPerBlock);
  }
}

/** The bytes of an image. */
export function qcow2Bytes(options: Qcow2Options = {}): Buffer {
  return buildQcow2(options).bytes;
}

function layOut(layout: Qcow2Layout, options: Qcow2Options): Qcow2Image {
  layout.allocate("header", 1);
  const tableClusters = Math.ceil((layout.refcountBlocks * 8) / layout.clusterSize);
  const refcountTable = layout.allocate("refcount table", tableClusters);
  const blocks: number[] = [];
  for (let block = 0; block < layout.refcountBlocks; block++) {
    blocks.push(layout.allocate(`refcount block ${block}`, 1));
  }
  const l1Entries = options.l1Entries ?? layout.l1EntriesFor(layout.virtualSize);
  const active = buildTree(layout, { prefix: "", l1Entries, clusters: options.clusters ?? {} });
  const snapshots = layOutSnapshots(layout, {
    active,
    l1Entries,
    snapshots: options.snapshots ?? [],
  });

  const bytes = Buffer.alloc(layout.clusterCount * layout.clusterSize);
  writeTree(layout, bytes, { tree: active, copied: "set" });
  for (const tree of snapshots.trees) {
    writeTree(layout, bytes, { tree, copied: "clear" });
  }
  for (const [offset, content] of [...layout.contents, ...snapshots.tables]) {
    content.copy(bytes, offset);
  }
  for (const [index, offset] of blocks.entries()) {
    writeBe(bytes, refcountTable + index * 8, 8, offset);
    for (let entry = 0; entry < layout.refcountsPerBlock; entry++) {
      const count = layout.references[index * layout.refcountsPerBlock + entry] ?? 0;
      writeRefcount(bytes, offset, { index: entry, bits: layout.refcountBits }, count);
    }
  }
  writeHeader(bytes, layout, options, {
    l1_size: l1Entries,
    l1_table_offset: active.l1Offset,
    refcount_table_offset: refcountTable,
    refcount_table_clusters: tableClusters,
    nb_snapshots: options.snapshots?.length ?? 0,
    snapshots_offset: snapshots.tableOffset,
  });
  return new Qcow2Image(layout, bytes);
}

/** Trees, L1 copies and the table of all snapshots; `tables` is what is left to copy into the file. */
function layOutSnapshots(
  layout: Qcow2Layout,
  from: {
    readonly active: Tree;
    readonly l1Entries: number;
    readonly snapshots: readonly Qcow2Snapshot[];
  },
): { trees: Tree[]; tables: [offset: number, content: Buffer][]; tableOffset: number } {
  const trees: Tree[] = [];
  const entries: Buffer[] = [];
  for (const [index, snapshot] of from.snapshots.entries()) {
    const prefix = `snapshot ${index} `;
    let tree: Tree;
    if (snapshot.clusters === undefined) {
      addReferences(layout, from.active);
      const l1Clusters = Math.max(1, Math.ceil((from.l1Entries * 8) / layout.clusterSize));
      tree = { ...from.active, l1Offset: layout.allocate(`${prefix}l1`, l1Clusters), l1Only: true };
    } else {
      tree = buildTree(layout, { prefix, l1Entries: from.l1Entries, clusters: snapshot.clusters });
    }
    trees.push(tree);
    const l1 = { offset: tree.l1Offset, entries: from.l1Entries };
    entries.push(encodeSnapshot(snapshot, { index, l1, virtualSize: layout.virtualSize }));
  }
  if (entries.length === 0) {
    return { trees, tables: [], tableOffset: 0 };
  }
  const table = Buffer.concat(entries);
  const tableOffset = layout.allocate(
    "snapshot table",
    Math.ceil(table.length / layout.clusterSize),
  );
  let offset = tableOffset;
  for (const [index, entry] of entries.entries()) {
    layout.regions.push({ name: `snapshot ${index}`, offset, length: entry.length });
    offset += entry.length;
  }
  return { trees, tables: [[tableOffset, table]], tableOffset };
}

function writeHeader(
  bytes: Buffer,
  layout: Qcow2Layout,
  options: Qcow2Options,
  tables: Qcow2HeaderFields,
): void {
  const version = options.version ?? 3;
  const headerLength = version === 2 ? 72 : (options.headerLength ?? 112);
  const extensions = allExtensions(options).map(encodeExtension);
  let end = headerLength;
  for (const [index, extension] of extensions.entries()) {
    layout.regions.push({ name: `extension ${index}`, offset: end, length: extension.length });
    extension.copy(bytes, end);
    end += extension.length;
  }
  const backing = Buffer.from(options.backingFile ?? "");
  if (options.backingFile !== undefined) {
    layout.regions.push({ name: "backing file name", offset: end, length: backing.length });
    backing.copy(bytes, end);
  }
  const fields: Qcow2HeaderFields = {
    magic: QCOW2_MAGIC,
    version,
    backing_file_offset: options.backingFile === undefined ? 0 : end,
    backing_file_size: backing.length,
    cluster_bits: Math.log2(layout.clusterSize),
    size: layout.virtualSize,
    ...tables,
    incompatible_features: impliedFeatures(options),
    refcount_order: options.refcountOrder ?? 4,
    header_length: headerLength,
    compression_type: headerLength > 104 ? (options.compressionType ?? 0) : undefined,
    ...options.header,
  };
  for (const name of qcow2HeaderFieldNames(version)) {
    const value = fields[name];
    if (value !== undefined) {
      writeQcow2HeaderField(bytes, name, value);
    }
  }
}

function allExtensions(options: Qcow2Options): Qcow2Extension[] {
  const extensions: Qcow2Extension[] = [];
  if (options.backingFormat !== undefined) {
    extensions.push({ type: EXTENSION_BACKING_FORMAT, data: options.backingFormat });
  }
  if (options.dataFile !== undefined) {
    extensions.push({ type: EXTENSION_DATA_FILE, data: options.dataFile });
  }
  extensions.push(...(options.extensions ?? []));
  if (options.endMarker !== "missing") {
    extensions.push({ type: EXTENSION_END, data: "" });
  }
  return extensions;
}

function impliedFeatures(options: Qcow2Options): bigint {
  return (
    (options.incompatible ?? 0n) |
    (options.dataFile === undefined ? 0n : INCOMPATIBLE_DATA_FILE) |
    (options.compressionType === 1 ? INCOMPATIBLE_COMPRESSION_TYPE : 0n) |
    (options.extendedL2 === true ? INCOMPATIBLE_EXTENDED_L2 : 0n)
  );
}

/** Writes entry `index` of the refcount block at `offset`; narrow widths fill bytes from the low end. */
function writeRefcount(
  bytes: Buffer,
  offset: number,
  entry: { readonly index: number; readonly bits: number },
  value: FieldValue,
): void {
  if (entry.bits >= 8) {
    writeBe(bytes, offset + (entry.index * entry.bits) / 8, entry.bits / 8, value);
    return;
  }
  const at = offset + Math.floor((entry.index * entry.bits) / 8);
  const shift = (entry.index * entry.bits) % 8;
  const mask = (1 << entry.bits) - 1;
  bytes[at] = ((bytes[at] ?? 0) & ~(mask << shift)) | ((Number(value) & mask) << shift);
}
