/**
 * A finished qcow2 image, of QEMU's making, in memory: finds its structures and changes single entries
 * of them, so that tests can damage it.
 *
 * Written from the qcow2 specification, without production code.
 */

import {
  EXTENSION_BITMAPS,
  EXTENSION_END,
  QCOW2_HEADER_FIELDS,
  type Qcow2HeaderField,
  readBe,
  writeBe,
} from "./qcow2-header-builder.ts";

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
export const COPIED = 1n << 63n;
export const COMPRESSED = 1n << 62n;
const INCOMPATIBLE_EXTENDED_L2 = 1n << 4n;

/** An 8-byte entry of a table, and where it is in the file. */
export interface TableEntry {
  readonly at: number;
  readonly word: bigint;
}

export class DamageImage {
  bytes: Buffer;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  header(field: Qcow2HeaderField): number {
    const { offset, size } = QCOW2_HEADER_FIELDS[field];
    if (this.version() === 2 && offset >= 72) return field === "refcount_order" ? 4 : 0;
    return Number(readBe(this.bytes, offset, size));
  }

  setHeader(field: Qcow2HeaderField, value: number | bigint): void {
    const { offset, size } = QCOW2_HEADER_FIELDS[field];
    writeBe(this.bytes, offset, size, value);
  }

  version(): number {
    return this.bytes.readUInt32BE(4);
  }

  clusterSize(): number {
    return 2 ** this.bytes.readUInt32BE(20);
  }

  clusters(): number {
    return Math.ceil(this.bytes.length / this.clusterSize());
  }

  extended(): boolean {
    return (BigInt(this.header("incompatible_features")) & INCOMPATIBLE_EXTENDED_L2) !== 0n;
  }

  refcountBits(): number {
    return 2 ** this.header("refcount_order");
  }

  u64(at: number): bigint {
    return readBe(this.bytes, at, 8);
  }

  setU64(at: number, word: bigint): void {
    writeBe(this.bytes, at, 8, word);
  }

  /** Entries of the active L1 table that name an L2 table. */
  l1Entries(): TableEntry[] {
    return this.#entries(this.header("l1_table_offset"), this.header("l1_size"), 8);
  }

  /** Entries that are not 0, of the L2 tables of the active tree. */
  l2Entries(): TableEntry[] {
    return this.l1Entries().flatMap((entry) => this.#l2TableOf(entry));
  }

  /** Entries of the snapshots' L1 tables that name an L2 table. */
  snapshotL1Entries(): TableEntry[] {
    return this.snapshotPlaces().flatMap((at) =>
      this.#entries(Number(this.u64(at)), this.bytes.readUInt32BE(at + 8), 8),
    );
  }

  /** As `l2Entries`, of the tables that the active tree does not have. */
  snapshotL2Entries(): TableEntry[] {
    const offsetOf = ({ word }: TableEntry): bigint => word & OFFSET_MASK;
    const seen = new Set(this.l1Entries().map(offsetOf));
    return this.snapshotL1Entries().flatMap((entry) => {
      if (seen.has(offsetOf(entry))) return [];
      seen.add(offsetOf(entry));
      return this.#l2TableOf(entry);
    });
  }

  /** L2 entries of standard clusters with a host offset. */
  dataEntries(): TableEntry[] {
    return this.l2Entries().filter(
      ({ word }) => (word & COMPRESSED) === 0n && (word & OFFSET_MASK) !== 0n,
    );
  }

  compressedEntries(): TableEntry[] {
    return this.l2Entries().filter(({ word }) => (word & COMPRESSED) !== 0n);
  }

  /** Entries of the refcount table that name a block. */
  blockEntries(): TableEntry[] {
    const entries = (this.header("refcount_table_clusters") * this.clusterSize()) / 8;
    return this.#entries(this.header("refcount_table_offset"), entries, 8);
  }

  refcount(cluster: number): number {
    const place = this.#refcountPlace(cluster);
    if (place === undefined) return 0;
    const { at, shift, size } = place;
    const bits = this.refcountBits();
    if (bits >= 8) return Number(readBe(this.bytes, at, size));
    return ((this.bytes[at] ?? 0) >> shift) & (2 ** bits - 1);
  }

  /** False if there is no place for it. */
  setRefcount(cluster: number, value: number): boolean {
    const place = this.#refcountPlace(cluster);
    if (place === undefined) return false;
    const { at, shift, size } = place;
    const bits = this.refcountBits();
    if (bits >= 8) {
      writeBe(this.bytes, at, size, value);
    } else {
      const mask = (2 ** bits - 1) << shift;
      this.bytes[at] = ((this.bytes[at] ?? 0) & ~mask) | ((value << shift) & mask);
    }
    return true;
  }

  /** Where each entry of the snapshot table starts in the file. */
  snapshotPlaces(): number[] {
    const places: number[] = [];
    let at = this.header("snapshots_offset");
    for (let index = 0; index < this.header("nb_snapshots"); index++) {
      // The image may be damaged already.
      if (at + 40 > this.bytes.length) break;
      places.push(at);
      const extra = this.bytes.readUInt32BE(at + 36);
      const text = this.bytes.readUInt16BE(at + 12) + this.bytes.readUInt16BE(at + 14);
      at += Math.ceil((40 + extra + text) / 8) * 8;
    }
    return places;
  }

  /** Where the data of a header extension starts in the file; undefined: the image has none of this type. */
  extensionPlace(type: number): number | undefined {
    let at = this.version() === 2 ? 72 : this.header("header_length");
    while (at + 8 <= this.clusterSize()) {
      const found = this.bytes.readUInt32BE(at);
      if (found === type) return at + 8;
      if (found === EXTENSION_END) break;
      at += 8 + Math.ceil(this.bytes.readUInt32BE(at + 4) / 8) * 8;
    }
    return undefined;
  }

  /** Where each entry of the directory of bitmaps starts in the file. */
  bitmapPlaces(): number[] {
    const extension = this.extensionPlace(EXTENSION_BITMAPS);
    if (extension === undefined) return [];
    const places: number[] = [];
    let at = Number(this.u64(extension + 16));
    for (let index = 0; index < this.bytes.readUInt32BE(extension); index++) {
      if (at + 24 > this.bytes.length) break;
      places.push(at);
      const text = this.bytes.readUInt16BE(at + 18) + this.bytes.readUInt32BE(at + 20);
      at += Math.ceil((24 + text) / 8) * 8;
    }
    return places;
  }

  /** Entries that are not 0, of the tables of all bitmaps. */
  bitmapEntries(): TableEntry[] {
    return this.bitmapPlaces().flatMap((at) =>
      this.#entries(Number(this.u64(at)), this.bytes.readUInt32BE(at + 8), 8),
    );
  }

  /**
   * Clusters that hold tables: header, L1, L2, refcount table and blocks, snapshot table with its L1 and L2
   * tables, directory and tables of bitmaps.
   */
  metadataClusters(): number[] {
    const tables = [...this.l1Entries(), ...this.snapshotL1Entries(), ...this.blockEntries()];
    const places = [...this.snapshotPlaces(), ...this.bitmapPlaces()];
    const offsets = [
      0,
      this.header("l1_table_offset"),
      this.header("refcount_table_offset"),
      ...tables.map(({ word }) => Number(word & OFFSET_MASK)),
      ...places,
      ...places.map((at) => Number(this.u64(at))),
    ];
    return [...new Set(offsets.map((offset) => Math.floor(offset / this.clusterSize())))];
  }

  #l2TableOf({ word }: TableEntry): TableEntry[] {
    const size = this.extended() ? 16 : 8;
    return this.#entries(Number(word & OFFSET_MASK), this.clusterSize() / size, size);
  }

  #entries(offset: number, count: number, size: number): TableEntry[] {
    const entries: TableEntry[] = [];
    for (let index = 0; index < count; index++) {
      const at = offset + index * size;
      if (at + size > this.bytes.length) break;
      const word = this.u64(at);
      if (word !== 0n) entries.push({ at, word });
    }
    return entries;
  }

  #refcountPlace(
    cluster: number,
  ): { readonly at: number; readonly shift: number; readonly size: number } | undefined {
    const bits = this.refcountBits();
    const perBlock = (this.clusterSize() * 8) / bits;
    const entryAt = this.header("refcount_table_offset") + Math.floor(cluster / perBlock) * 8;
    const offset = Number(this.u64(entryAt) & ~0x1ffn);
    const bit = (cluster % perBlock) * bits;
    const at = offset + Math.floor(bit / 8);
    if (offset === 0 || at + Math.ceil(bits / 8) > this.bytes.length) return undefined;
    return { at, shift: bit % 8, size: bits / 8 };
  }
}
