/**
 * What L1 tables refer to: L2 tables, data clusters, compressed clusters. However often an L2 table is
 * named it is read once, and holes of the file are not read at all. Source: qcow2 specification,
 * "Cluster mapping".
 */

import { CorruptionError, hex } from "../../../errors.ts";
import type { Storage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { DataRuns } from "../../data-runs.ts";
import { CLUSTER, L2EntryRules } from "../check/l2-table-walk.ts";
import { L2Tables } from "../check/l2-tables.ts";
import { checkL1Table } from "../header.ts";
import type { Qcow2Layout } from "../layout.ts";
import { entryHostOffset } from "../table-entry.ts";
import type { NewRefcounts } from "./new-refcounts.ts";

/** An L1 table in the file. */
export interface L1Place {
  /** Host offset, bytes. */
  readonly offset: number;
  readonly entries: number;
}

/** What becomes of the tree below an L1 table. */
export interface TreeChange {
  readonly l1: L1Place;
  /** References that each of its entries gains: 1, or loses: -1. */
  readonly references: 1 | -1;
}

export class TableTrees {
  /** `totalAt`: references that a table gains. `activeAt`: those of the L1 table that is to be active. */
  readonly tables: L2Tables;
  readonly rules: L2EntryRules;
  readonly #layout: Qcow2Layout;
  readonly #storage: Storage;

  constructor(layout: Qcow2Layout, storage: Storage) {
    this.#layout = layout;
    this.#storage = storage;
    this.rules = new L2EntryRules(layout);
    this.tables = new L2Tables(storage.path, layout.clusterSize);
  }

  /**
   * Note what an L1 table refers to.
   *
   * @throws {FormatError | CorruptionError} it cannot be right
   */
  addTree({ l1, references }: TreeChange): void {
    this.forEachTable(l1, (offset) => this.tables.add(offset, 0, references));
  }

  /** Note the L1 table that is to be active. */
  addActive(l1: L1Place): void {
    this.forEachTable(l1, (offset) => this.tables.add(offset, 1, 0));
  }

  /** Visit the L2 tables that an L1 table names, as often as it does. */
  forEachTable(l1: L1Place, visit: (offset: number, l1Index: number) => void): void {
    const { clusterSize } = this.#layout;
    const { path } = this.#storage;
    checkL1Table(path, clusterSize, l1.offset, l1.entries);
    const runs = new DataRuns(this.#storage, this.#storage.currentLength());
    runs.forEachEntry(l1.offset, l1.offset + l1.entries * 8, (hi, lo, at) => {
      const offset = entryHostOffset(hi, lo);
      if (offset === 0) return;
      if (!Number.isFinite(offset) || offset % clusterSize !== 0) {
        const reason = `the L1 entry at ${hex(at)} has an L2 table offset that cannot be right, ${hex(offset)}`;
        throw new CorruptionError(path, reason, { offset: at });
      }
      visit(offset, (at - l1.offset) / 8);
    });
  }

  /**
   * Count what the trees gain and lose.
   *
   * @throws {CorruptionError} an entry cannot be right
   */
  count(refcounts: NewRefcounts): void {
    // What one tree loses another one may gain: counts stay low if the losses come first.
    this.#countTables(refcounts, (references) => references < 0);
    this.#countTables(refcounts, (references) => references > 0);
  }

  #countTables(refcounts: NewRefcounts, isMeant: (references: number) => boolean): void {
    const { clusterSize } = this.#layout;
    this.readTables(
      (offset) => isMeant(this.tables.totalAt(offset)),
      (content, offset) => this.#countEntries(refcounts, content, offset),
    );
    for (const offset of this.tables.inOrder()) {
      const references = this.tables.totalAt(offset);
      if (isMeant(references)) refcounts.add(offset / clusterSize, references);
    }
  }

  /** Read some of the tables, as far as they hold anything. */
  readTables(
    isMeant: (offset: number) => boolean,
    visit: (content: NativeBuffer, offset: number, index: number) => void,
  ): void {
    const { clusterSize } = this.#layout;
    const content = NativeBuffer.allocate(clusterSize);
    const runs = new DataRuns(this.#storage, this.#storage.currentLength());
    let index = -1;
    for (const offset of this.tables.inOrder()) {
      index++;
      const end = offset + clusterSize;
      if (!isMeant(offset) || runs.nextData(offset, end) === end) continue;
      this.#storage.readAt(content, 0, clusterSize, offset);
      visit(content, offset, index);
    }
  }

  #countEntries(refcounts: NewRefcounts, { view }: NativeBuffer, table: number): void {
    const { rules } = this;
    const { clusterSize } = this.#layout;
    const references = this.tables.totalAt(table);
    for (let at = 0; at < view.byteLength; at += rules.entryBytes) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      const kind = rules.kindOf(hi, lo);
      if (kind === CLUSTER.unallocated) continue;
      if (kind === CLUSTER.allocated) {
        const offset = entryHostOffset(hi, lo);
        if (!Number.isFinite(offset) || offset % clusterSize !== 0) this.#throwEntry(table + at);
        refcounts.add(offset / clusterSize, references);
        continue;
      }
      const offset = rules.compressedOffset(hi, lo);
      if (!Number.isFinite(offset)) this.#throwEntry(table + at);
      const end = Math.ceil((offset + rules.compressedLength(hi, offset)) / clusterSize);
      for (let cluster = Math.floor(offset / clusterSize); cluster < end; cluster++) {
        refcounts.add(cluster, references);
      }
    }
  }

  #throwEntry(offset: number): never {
    const reason = `the L2 entry at ${hex(offset)} has a host offset that cannot be right; see tsimgfs check`;
    throw new CorruptionError(this.#storage.path, reason, { offset });
  }
}
