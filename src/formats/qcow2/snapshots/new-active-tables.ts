/**
 * The active tables as they will be, their COPIED flags set exactly where the refcount will be 1: a new L1
 * table, and copies of the L2 tables whose flags change. Those in force stay as they are, since a snapshot
 * may have them too, and since nothing may change before all does.
 */

import { TWO_TO_32 } from "../../../binary/words.ts";
import { CorruptionError, hex } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { CLUSTER } from "../check/l2-table-walk.ts";
import { COPIED_HI, entryHostOffset } from "../table-entry.ts";
import type { ClusterRun } from "../writer/refcount-store.ts";
import type { FreshClusters } from "./fresh-clusters.ts";
import type { NewRefcounts } from "./new-refcounts.ts";
import type { L1Place, TableTrees } from "./table-tree.ts";

export interface NewActiveTablesContext {
  readonly storage: WritableStorage;
  readonly clusterSize: number;
  readonly trees: TableTrees;
  readonly refcounts: NewRefcounts;
  readonly fresh: FreshClusters;
}

export class NewActiveTables {
  readonly #context: NewActiveTablesContext;
  /** Of each L2 table, in their order: where its copy is, host offset; 0: it stays. */
  readonly #copies: Float64Array;
  /** Of each: 1 if its refcount will be 1. */
  readonly #alone: Uint8Array;

  constructor(context: NewActiveTablesContext) {
    this.#context = context;
    const count = context.trees.tables.inOrder().length;
    this.#copies = new Float64Array(count);
    this.#alone = new Uint8Array(count);
  }

  /**
   * Copy the L2 tables whose flags change. All references must be counted and settled.
   *
   * @returns whether there are any
   * @throws {CorruptionError} a table is not counted
   */
  copyTables(): boolean {
    const { trees, storage, fresh, refcounts, clusterSize } = this.#context;
    const { tables } = trees;
    let isAny = false;
    trees.readTables(
      (offset) => tables.activeAt(offset) > 0,
      (content, _offset, index) => {
        if (!this.#correctFlags(content.view)) return;
        const copy = fresh.take(1) * clusterSize;
        storage.writeAt(content, 0, clusterSize, copy);
        this.#copies[index] = copy;
        isAny = true;
      },
    );
    tables.inOrder().forEach((offset, index) => {
      const active = tables.activeAt(offset);
      if (active === 0) return;
      const refcount = this.#copies[index] === 0 ? this.#refcountOf(offset) : active;
      this.#alone[index] = refcount === 1 ? 1 : 0;
    });
    // The copies are counted instead.
    tables.inOrder().forEach((offset, index) => {
      const copy = this.#copies[index] ?? 0;
      if (copy === 0) return;
      const active = tables.activeAt(offset);
      refcounts.add(offset / clusterSize, -active);
      refcounts.add(copy / clusterSize, active);
    });
    return isAny;
  }

  #refcountOf(offset: number): number {
    const refcount = this.#context.refcounts.get(offset / this.#context.clusterSize);
    if (refcount > 0) return refcount;
    const reason = `the L2 table at ${hex(offset)} is in use, but not counted; see tsimgfs check`;
    throw new CorruptionError(this.#context.storage.path, reason, { offset });
  }

  /** Returns whether any flag was another one. */
  #correctFlags(view: DataView): boolean {
    const { trees, refcounts, clusterSize } = this.#context;
    const { rules } = trees;
    let isChanged = false;
    for (let at = 0; at < view.byteLength; at += rules.entryBytes) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if (rules.kindOf(hi, lo) !== CLUSTER.allocated) continue;
      const isCopied = (hi & COPIED_HI) !== 0;
      if (isCopied === (refcounts.get(entryHostOffset(hi, lo) / clusterSize) === 1)) continue;
      view.setUint32(at, (hi ^ COPIED_HI) >>> 0);
      isChanged = true;
    }
    return isChanged;
  }

  /** Whether an L1 table has the entries already that `write` would write. */
  isUpToDate(l1: L1Place): boolean {
    const content = this.#build(l1, l1.entries);
    const { storage } = this.#context;
    const now = NativeBuffer.allocate(content.length);
    storage.readAt(now, 0, l1.entries * 8, l1.offset);
    return Buffer.compare(now.bytes, content.bytes) === 0;
  }

  /**
   * Write the new L1 table.
   *
   * @param l1 whose entries it gets
   * @param entries of the new table
   */
  write(
    l1: L1Place,
    entries: number,
  ): { readonly clusters: ClusterRun; readonly content: NativeBuffer } {
    const { storage, fresh, refcounts, clusterSize } = this.#context;
    const content = this.#build(l1, entries);
    const count = content.length / clusterSize;
    const clusters = { first: fresh.take(count), count };
    refcounts.addRun(clusters, 1);
    storage.writeAt(content, 0, content.length, clusters.first * clusterSize);
    return { clusters, content };
  }

  /** The entries of a new L1 table, whole clusters. */
  #build(l1: L1Place, entries: number): NativeBuffer {
    const { trees, clusterSize } = this.#context;
    const clusters = Math.max(1, Math.ceil((entries * 8) / clusterSize));
    const content = NativeBuffer.allocate(clusters * clusterSize);
    const order = trees.tables.inOrder();
    trees.forEachTable(l1, (table, l1Index) => {
      if (l1Index >= entries) return;
      const index = indexOf(order, table);
      const offset = this.#copies[index] || table;
      const flags = this.#alone[index] === 1 ? COPIED_HI : 0;
      content.view.setUint32(l1Index * 8, (Math.floor(offset / TWO_TO_32) | flags) >>> 0);
      content.view.setUint32(l1Index * 8 + 4, offset % TWO_TO_32);
    });
    return content;
  }

  /** Visit the places of the copies, host offsets. */
  forEachCopy(visit: (offset: number) => void): void {
    for (const offset of this.#copies) if (offset !== 0) visit(offset);
  }
}

/** Where a number is among rising ones. */
function indexOf(order: Float64Array, value: number): number {
  let [low, high] = [0, order.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((order[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
