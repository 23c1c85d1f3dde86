/**
 * A finished qcow2 image, of QEMU's making, in memory: finds its structures and changes single entries
 * of them, so that tests can damage it.
 *
 * Written from the qcow2 specification, without production code.
 */

import {
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
    const size = this.extended() ? 16 : 8;
    return this.l1Entries().flatMap(({ word }) => {
      const offset = Number(word & OFFSET_MASK);
      return this.#entries(offset, this.clusterSize() / size, size);
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

  /** Clusters that hold tables: header, L1, L2, refcount table and blocks, snapshot table and its L1s. */
  metadataClusters(): number[] {
    const offsets = [
      0,
      this.header("l1_table_offset"),
      this.header("refcount_table_offset"),
      ...[...this.l1Entries(), ...this.blockEntries()].map(({ word }) =>
        Number(word & OFFSET_MASK),
      ),
      ...this.snapshotPlaces(),
      ...this.snapshotPlaces().map((at) => Number(this.u64(at))),
    ];
    return [...new Set(offsets.map((offset) => Math.floor(offset / this.clusterSize())))];
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
