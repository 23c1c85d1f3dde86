/**
 * Changes of header fields in place, each within one sector, so that it happens whole or not at all.
 * What the header holds beyond that, known or not, stays as it is byte for byte.
 */

import { encode, offsetOf, sizeOf } from "../../../binary/struct.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { COMPATIBLE_LAZY_REFCOUNTS, INCOMPATIBLE } from "../features.ts";
import { HEADER, QCOW2_MAGIC } from "../header.ts";

const FEATURES_START = offsetOf(HEADER, "incompatible_features");
const FEATURES_LENGTH = sizeOf(HEADER, "autoclear_features") - FEATURES_START;
const INCOMPATIBLE_AT = 0;
const COMPATIBLE_AT = offsetOf(HEADER, "compatible_features") - FEATURES_START;
const AUTOCLEAR_AT = offsetOf(HEADER, "autoclear_features") - FEATURES_START;

type FieldName = (typeof HEADER)[number][0];

/** The fields that say where the structures of an image are. */
export interface StructureFields {
  /** Undefined: it stays. */
  readonly size: number | undefined;
  readonly l1_size: number;
  readonly l1_table_offset: number;
  readonly refcount_table_offset: number;
  readonly refcount_table_clusters: number;
  readonly nb_snapshots: number;
  readonly snapshots_offset: number;
}

export class HeaderWriter {
  readonly #storage: WritableStorage;
  readonly #version: number;
  readonly #buffer = NativeBuffer.allocate(sizeOf(HEADER));

  constructor(storage: WritableStorage, version: number) {
    this.#storage = storage;
    this.#version = version;
  }

  /**
   * Clear all autoclear bits but those of what stays true. Returns whether any was set.
   *
   * @param kept bits
   */
  clearAutoclear(kept: bigint): boolean {
    const features = this.#readFeatures();
    if (features === undefined) return false;
    const autoclear = features.getBigUint64(AUTOCLEAR_AT);
    if ((autoclear & ~kept) === 0n) return false;
    features.setBigUint64(AUTOCLEAR_AT, autoclear & kept);
    this.#storage.writeAt(this.#buffer, 0, FEATURES_LENGTH, FEATURES_START);
    return true;
  }

  /**
   * Write the header's sector as it is, which is to be durable before anything else is written. Where a sync of an
   * earlier writer has failed, the host shows what that one has written here, and may have dropped it all the same: a
   * power cut would bring back the header before, and what that one refers to may be given to others by then.
   */
  renew(): void {
    this.#write("magic", "version", { magic: QCOW2_MAGIC, version: this.#version });
  }

  /** As `renew`, with the dirty bit; version 2 has none. */
  announce(): void {
    if (this.#version >= 3) this.setIncompatible("dirty", true);
    else this.renew();
  }

  /** Set or clear an incompatible bit; version 2 has none, and stays as it is. */
  setIncompatible(bit: "dirty" | "corrupt", value: boolean): void {
    const features = this.#readFeatures();
    if (features === undefined) return;
    const old = features.getBigUint64(INCOMPATIBLE_AT);
    const mask = INCOMPATIBLE[bit];
    features.setBigUint64(INCOMPATIBLE_AT, value ? old | mask : old & ~mask);
    this.#storage.writeAt(this.#buffer, 0, FEATURES_LENGTH, FEATURES_START);
  }

  /** Switch to another refcount table, which is durable. Two fields side by side, in one write. */
  setRefcountTable(offset: number, clusters: number): void {
    this.#write("refcount_table_offset", "refcount_table_clusters", {
      refcount_table_offset: offset,
      refcount_table_clusters: clusters,
    });
  }

  /** As `setRefcountTable`, with refcounts of another width; version 2 has one width only, and no field for it. */
  setRefcounts(table: { offset: number; clusters: number }, refcountBits: number): void {
    if (this.#version < 3) {
      this.setRefcountTable(table.offset, table.clusters);
      return;
    }
    const [first, last] = ["refcount_table_offset", "refcount_order"] as const;
    const start = offsetOf(HEADER, first);
    this.#storage.readAt(this.#buffer, start, sizeOf(HEADER, last) - start, start);
    this.#write(first, last, {
      refcount_table_offset: table.offset,
      refcount_table_clusters: table.clusters,
      refcount_order: Math.log2(refcountBits),
    });
  }

  /** Version 3: refcounts may be brought up to date later than what they count. */
  setLazyRefcounts(value: boolean): void {
    const features = this.#readFeatures();
    if (features === undefined) return;
    const old = features.getBigUint64(COMPATIBLE_AT);
    const mask = COMPATIBLE_LAZY_REFCOUNTS;
    features.setBigUint64(COMPATIBLE_AT, value ? old | mask : old & ~mask);
    this.#storage.writeAt(this.#buffer, 0, FEATURES_LENGTH, FEATURES_START);
  }

  /** Switch to another L1 table, which is durable. */
  setL1Table(offset: number, entries: number): void {
    this.#write("l1_size", "l1_table_offset", { l1_size: entries, l1_table_offset: offset });
  }

  /** Switch to other structures, which are durable: all fields in one write, within the first sector. */
  switchStructures({ size, ...values }: StructureFields): void {
    const [first, last] = ["size", "snapshots_offset"] as const;
    const start = offsetOf(HEADER, first);
    this.#storage.readAt(this.#buffer, start, sizeOf(HEADER, last) - start, start);
    this.#write(first, last, size === undefined ? values : { size, ...values });
  }

  setVirtualSize(size: number): void {
    this.#write("size", "size", { size });
  }

  #write(
    first: FieldName,
    last: FieldName,
    values: Readonly<Partial<Record<FieldName, number>>>,
  ): void {
    const start = offsetOf(HEADER, first);
    encode(HEADER, values, this.#buffer.bytes, "be");
    this.#storage.writeAt(this.#buffer, start, sizeOf(HEADER, last) - start, start);
  }

  #readFeatures(): DataView | undefined {
    if (this.#version < 3) return undefined;
    this.#storage.readAt(this.#buffer, 0, FEATURES_LENGTH, FEATURES_START);
    return this.#buffer.view;
  }
}
