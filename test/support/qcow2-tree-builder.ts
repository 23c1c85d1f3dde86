/**
 * Lays out the mapping of a qcow2 image under construction: host clusters, L1 and L2 tables, data and
 * compressed clusters, with the references that become refcounts.
 *
 * Written from the qcow2 specification ("Cluster mapping"), without production code.
 */

import { type FieldValue, writeBe } from "./qcow2-header-builder.ts";

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const ZERO_FLAG = 1n;

/** What one guest cluster is. Bytes shorter than a cluster are padded with zeros. */
export type Qcow2Cluster =
  | { readonly kind: "data"; readonly bytes: Uint8Array }
  | { readonly kind: "zero" }
  | { readonly kind: "zero-preallocated"; readonly bytes: Uint8Array }
  | { readonly kind: "compressed"; readonly stream: Uint8Array }
  | {
      readonly kind: "subclusters";
      readonly bytes: Uint8Array;
      readonly allocated: number;
      readonly zero: number;
    }
  | {
      readonly kind: "entry";
      readonly entry: FieldValue;
      readonly bitmap?: FieldValue | undefined;
    };

/** A named byte range of the image file, for truncation and mutation at known places. */
export interface ImageRegion {
  readonly name: string;
  readonly offset: number;
  readonly length: number;
}

/** What decides the layout. */
interface Geometry {
  readonly version?: 2 | 3 | undefined;
  readonly clusterBits?: number | undefined;
  readonly virtualSize?: number | undefined;
  readonly refcountOrder?: number | undefined;
  readonly extendedL2?: boolean | undefined;
  readonly dataFile?: string | Uint8Array | undefined;
}

/** An image being laid out: hands out host clusters and counts the references to each. */
export class Qcow2Layout {
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly virtualSize: number;
  readonly refcountBits: number;
  readonly refcountsPerBlock: number;
  readonly refcountBlocks: number;
  readonly l2EntryBytes: number;
  readonly dataFile: Buffer | undefined;
  readonly regions: ImageRegion[] = [];
  /** References by host cluster index. */
  readonly references: number[] = [];
  /** Bytes to copy into the file once its size is known. */
  readonly contents: [offset: number, content: Buffer][] = [];
  clusterCount = 0;

  constructor(options: Geometry, refcountBlocks: number) {
    this.clusterBits = options.clusterBits ?? 16;
    this.clusterSize = 2 ** this.clusterBits;
    this.virtualSize = options.virtualSize ?? 1024 * 1024;
    this.refcountBits = options.version === 2 ? 16 : 2 ** (options.refcountOrder ?? 4);
    this.refcountsPerBlock = (this.clusterSize * 8) / this.refcountBits;
    this.refcountBlocks = refcountBlocks;
    this.l2EntryBytes = options.extendedL2 === true ? 16 : 8;
    this.dataFile = options.dataFile === undefined ? undefined : Buffer.alloc(this.virtualSize);
  }

  /** Reserves consecutive clusters under a name; each counts one reference. Returns the offset. */
  allocate(name: string, clusters: number): number {
    const offset = this.clusterCount * this.clusterSize;
    for (let index = 0; index < clusters; index++) {
      this.references.push(1);
    }
    this.clusterCount += clusters;
    this.regions.push({ name, offset, length: clusters * this.clusterSize });
    return offset;
  }

  l1EntriesFor(size: number): number {
    const covered = this.clusterSize * (this.clusterSize / this.l2EntryBytes);
    return Math.ceil(size / covered);
  }
}

/** An L2 entry before its COPIED bit is known. */
interface Entry {
  readonly word: bigint;
  readonly bitmap: bigint;
  /** Host clusters it refers to, once each. */
  readonly hostClusters: readonly number[];
  readonly kind: "standard" | "compressed" | "data file" | "verbatim";
}

/** The L1 table and L2 tables of the active disk or of a snapshot. */
export interface Tree {
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** By L1 index: offset of the L2 table, entries by L2 index. */
  readonly tables: ReadonlyMap<
    number,
    { readonly offset: number; readonly entries: ReadonlyMap<number, Entry> }
  >;
  /** The L2 tables belong to another tree; only the L1 table is written. */
  readonly l1Only?: boolean | undefined;
}

/** Reserves the L1 table, the L2 tables and all clusters of a tree. */
export function buildTree(
  layout: Qcow2Layout,
  from: {
    readonly prefix: string;
    readonly l1Entries: number;
    readonly clusters: Readonly<Record<number, Qcow2Cluster>>;
  },
): Tree {
  const l1Clusters = Math.max(1, Math.ceil((from.l1Entries * 8) / layout.clusterSize));
  const l1Offset = layout.allocate(`${from.prefix}l1`, l1Clusters);
  const l2Entries = layout.clusterSize / layout.l2EntryBytes;
  const tables = new Map<number, { offset: number; entries: Map<number, Entry> }>();
  const compressed: [guestCluster: number, stream: Uint8Array][] = [];
  const tableOf = (guestCluster: number) => {
    const l1Index = Math.floor(guestCluster / l2Entries);
    let table = tables.get(l1Index);
    if (table === undefined) {
      table = { offset: layout.allocate(`${from.prefix}l2 ${l1Index}`, 1), entries: new Map() };
      tables.set(l1Index, table);
    }
    return table;
  };
  for (const [key, cluster] of Object.entries(from.clusters)) {
    const guestCluster = Number(key);
    const table = tableOf(guestCluster);
    if (cluster.kind === "compressed") {
      compressed.push([guestCluster, cluster.stream]);
    } else {
      table.entries.set(
        guestCluster % l2Entries,
        buildEntry(layout, { prefix: from.prefix, guestCluster, cluster }),
      );
    }
  }
  for (const [guestCluster, entry] of packCompressed(layout, { prefix: from.prefix, compressed })) {
    tableOf(guestCluster).entries.set(guestCluster % l2Entries, entry);
  }
  return { l1Offset, l1Entries: from.l1Entries, tables };
}

/** Counts one more reference to every L2 table and cluster of a tree: what a snapshot does. */
export function addReferences(layout: Qcow2Layout, tree: Tree): void {
  for (const table of tree.tables.values()) {
    addReference(layout, table.offset / layout.clusterSize);
    for (const entry of table.entries.values()) {
      for (const hostCluster of entry.hostClusters) {
        addReference(layout, hostCluster);
      }
    }
  }
}

function addReference(layout: Qcow2Layout, hostCluster: number): void {
  layout.references[hostCluster] = (layout.references[hostCluster] ?? 0) + 1;
}

/** Writes the tables of a tree. COPIED goes where the reference count is exactly one. */
export function writeTree(
  layout: Qcow2Layout,
  bytes: Buffer,
  what: { readonly tree: Tree; readonly copied: "set" | "clear" },
): void {
  const copiedFor = (hostCluster: number | undefined): bigint =>
    what.copied === "set" && hostCluster !== undefined && layout.references[hostCluster] === 1
      ? COPIED
      : 0n;
  for (const [l1Index, table] of what.tree.tables) {
    const copied = copiedFor(table.offset / layout.clusterSize);
    writeBe(bytes, what.tree.l1Offset + l1Index * 8, 8, BigInt(table.offset) | copied);
    if (what.tree.l1Only === true) {
      continue;
    }
    for (const [l2Index, entry] of table.entries) {
      const at = table.offset + l2Index * layout.l2EntryBytes;
      writeBe(bytes, at, 8, entry.word | entryCopied(entry, copiedFor));
      if (layout.l2EntryBytes === 16) {
        writeBe(bytes, at + 8, 8, entry.bitmap);
      }
    }
  }
}

function entryCopied(entry: Entry, copiedFor: (hostCluster: number | undefined) => bigint): bigint {
  switch (entry.kind) {
    case "standard":
      return copiedFor(entry.hostClusters[0]);
    case "data file":
      return COPIED;
    default:
      return 0n;
  }
}

function buildEntry(
  layout: Qcow2Layout,
  from: {
    readonly prefix: string;
    readonly guestCluster: number;
    readonly cluster: Exclude<Qcow2Cluster, { kind: "compressed" }>;
  },
): Entry {
  const { cluster } = from;
  const extended = layout.l2EntryBytes === 16;
  if (cluster.kind === "entry") {
    const bitmap = BigInt(cluster.bitmap ?? 0);
    return { word: BigInt(cluster.entry), bitmap, hostClusters: [], kind: "verbatim" };
  }
  const zeroWord = extended ? 0n : ZERO_FLAG;
  if (cluster.kind === "zero") {
    return {
      word: zeroWord,
      bitmap: extended ? 0xffffffffn << 32n : 0n,
      hostClusters: [],
      kind: "verbatim",
    };
  }
  const host = placeData(layout, from.prefix, from.guestCluster, cluster.bytes);
  if (cluster.kind === "zero-preallocated") {
    return { ...host, word: host.word | zeroWord, bitmap: extended ? 0xffffffffn << 32n : 0n };
  }
  if (cluster.kind === "subclusters") {
    return { ...host, bitmap: (BigInt(cluster.zero) << 32n) | BigInt(cluster.allocated) };
  }
  return { ...host, bitmap: extended ? 0xffffffffn : 0n };
}

/** Puts the bytes of a guest cluster into a new host cluster, or into the external data file. */
function placeData(
  layout: Qcow2Layout,
  prefix: string,
  guestCluster: number,
  data: Uint8Array,
): Entry {
  const content = Buffer.alloc(layout.clusterSize);
  Buffer.from(data).copy(content);
  if (layout.dataFile !== undefined) {
    const offset = guestCluster * layout.clusterSize;
    content.copy(layout.dataFile, offset);
    return { word: BigInt(offset), bitmap: 0n, hostClusters: [], kind: "data file" };
  }
  const offset = layout.allocate(`${prefix}data ${guestCluster}`, 1);
  layout.contents.push([offset, content]);
  return {
    word: BigInt(offset),
    bitmap: 0n,
    hostClusters: [offset / layout.clusterSize],
    kind: "standard",
  };
}

/** Packs streams byte after byte into consecutive host clusters, as QEMU does. */
function packCompressed(
  layout: Qcow2Layout,
  from: {
    readonly prefix: string;
    readonly compressed: readonly (readonly [guestCluster: number, stream: Uint8Array])[];
  },
): [guestCluster: number, entry: Entry][] {
  const packed = Buffer.concat(from.compressed.map(([, stream]) => stream));
  if (from.compressed.length === 0) {
    return [];
  }
  const clusters = Math.max(1, Math.ceil(packed.length / layout.clusterSize));
  const start = layout.allocate(`${from.prefix}compressed`, clusters);
  for (let index = 0; index < clusters; index++) {
    layout.references[start / layout.clusterSize + index] = 0;
  }
  layout.contents.push([start, packed]);
  let offset = start;
  return from.compressed.map(([guestCluster, stream]) => {
    layout.regions.push({
      name: `${from.prefix}compressed ${guestCluster}`,
      offset,
      length: stream.length,
    });
    const word = compressedEntry(layout.clusterBits, { offset, length: stream.length });
    const hostClusters: number[] = [];
    const last = Math.floor((offset + Math.max(1, stream.length) - 1) / layout.clusterSize);
    for (let host = Math.floor(offset / layout.clusterSize); host <= last; host++) {
      addReference(layout, host);
      hostClusters.push(host);
    }
    offset += stream.length;
    return [guestCluster, { word, bitmap: 0n, hostClusters, kind: "compressed" }];
  });
}

/** An L2 entry for a compressed stream of `length` bytes at the host byte `offset`. */
export function compressedEntry(
  clusterBits: number,
  at: { readonly offset: number | bigint; readonly length: number },
): bigint {
  const offset = BigInt(at.offset);
  const lengthShift = BigInt(62 - (clusterBits - 8));
  const extraSectors = ((offset % 512n) + BigInt(Math.max(1, at.length)) - 1n) / 512n;
  return COMPRESSED | (extraSectors << lengthShift) | offset;
}
