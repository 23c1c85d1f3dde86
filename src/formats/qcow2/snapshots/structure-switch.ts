/**
 * Changing the structures of an image as a whole: all that is new is written to clusters that nothing
 * refers to and made durable, then one sector of the header makes it the image: the active L1 table, the
 * refcount table and the snapshot table at once. At every instant the image is the old one or the new
 * one, with nothing leaked: COPIED flags and refcounts, which must agree, could not change one after the
 * other. Source: qcow2 specification, "Header"; QEMU's check of OFLAG_COPIED.
 *
 * No other thread changes tables meanwhile. Writes to clusters that have their place go on, but for the
 * moment of the switch.
 */

import { CorruptionError, hex, StorageError } from "../../../errors.ts";
import { NativeBuffer } from "../../../syscalls/native-buffer.ts";
import { metadataRanges } from "../writer/metadata-ranges.ts";
import type { ClusterRun } from "../writer/refcount-store.ts";
import { NUMBER } from "../writer/shared-state.ts";
import type { Qcow2WriterContext } from "../writer/writer-context.ts";
import { FreshClusters } from "./fresh-clusters.ts";
import { NewActiveTables } from "./new-active-tables.ts";
import { NewRefcounts } from "./new-refcounts.ts";
import type { NewSnapshotTable } from "./new-snapshot-table.ts";
import { type L1Place, TableTrees, type TreeChange } from "./table-tree.ts";

/** What is to become of an image. */
export interface StructureChange {
  /** What its trees of tables gain and lose. */
  readonly trees: readonly TreeChange[];
  /** The L1 table whose entries the active one gets. */
  readonly active: L1Place;
  /** Entries of the active L1 table. */
  readonly l1Entries: number;
  /** Bytes. */
  readonly virtualSize: number;
  /** Undefined: the table stays. */
  readonly snapshotTable: NewSnapshotTable | undefined;
  /** Whose clusters nothing refers to any more. */
  readonly droppedL1: L1Place | undefined;
  /** What the active L1 table in force becomes, if it is replaced: a snapshot's, or nothing. */
  readonly oldL1: "kept" | "dropped";
}

/** What threads are to know of another L1 table, so that nothing is read once the header refers to it. */
interface Replacement {
  /** The new table as it is in the file. */
  readonly content: NativeBuffer;
  /** The clusters of the L2 tables that the old one names, and the new one. */
  readonly oldTables: readonly number[];
  readonly newTables: readonly number[];
}

/** Structures that are written and wait for the switch. */
interface Prepared {
  readonly l1: L1Place;
  /** Undefined: the L1 table in force stays. */
  readonly replacement: Replacement | undefined;
  readonly refcountTable: ClusterRun;
  readonly snapshotsOffset: number;
}

export class StructureSwitch {
  readonly #context: Qcow2WriterContext;
  readonly #change: StructureChange;
  readonly #fresh: FreshClusters;
  readonly #refcounts: NewRefcounts;
  readonly #trees: TableTrees;

  /** Under the structure mutex, which is held until `run` has returned. */
  constructor(context: Qcow2WriterContext, change: StructureChange) {
    const { layout, storage, state, allocator, metadata, snapshots } = context;
    // Another thread may have moved a table.
    metadata.ranges = metadataRanges(layout, state, snapshots);
    this.#context = context;
    this.#change = change;
    this.#fresh = new FreshClusters({
      clusterSize: layout.clusterSize,
      storage,
      refcounts: allocator.refcounts,
      metadata,
      freeHint: state.get(NUMBER.freeHint),
      markCorrupt: (reason) => allocator.marks.markCorrupt(reason),
    });
    const { refcounts } = allocator;
    this.#refcounts = new NewRefcounts({ layout, storage, state, refcounts }, this.#fresh);
    this.#trees = new TableTrees(layout, storage);
  }

  /**
   * @throws {TsimgfsError} nothing has changed
   */
  run(): void {
    const { allocator } = this.#context;
    let prepared: Prepared;
    let active: NewActiveTables;
    try {
      ({ prepared, active } = this.#prepare());
      this.#refuseLosses(prepared);
      this.#fresh.extendFile();
      allocator.marks.sync();
    } catch (error) {
      this.#giveUp();
      throw error;
    }
    this.#publish(prepared, active);
    allocator.marks.sync();
    // It is done, whatever becomes of space that is free now.
    this.#tryOnHost(() => this.#release());
  }

  /** The error that led here is the one to report. */
  #giveUp(): void {
    this.#tryOnHost(() => this.#fresh.giveUp());
  }

  /** Do something as far as the host lets it. */
  #tryOnHost(action: () => void): void {
    try {
      action();
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
    }
  }

  /** Write all that is new. */
  #prepare(): { prepared: Prepared; active: NewActiveTables } {
    const { storage, layout } = this.#context;
    const { clusterSize } = layout;
    const change = this.#change;
    const [trees, refcounts, fresh] = [this.#trees, this.#refcounts, this.#fresh];
    for (const tree of change.trees) trees.addTree(tree);
    trees.addActive(change.active);
    trees.count(refcounts);
    refcounts.settle();
    const active = new NewActiveTables({ storage, clusterSize, trees, refcounts, fresh });
    const hasCopies = active.copyTables();
    const { droppedL1 } = change;
    if (droppedL1 !== undefined) refcounts.addRun(this.#clustersOf(droppedL1), -1);
    const snapshotsOffset = this.#writeSnapshotTable();
    const l1 = this.#writeL1(active, hasCopies);
    const refcountTable = refcounts.finish();
    return { prepared: { ...l1, refcountTable, snapshotsOffset }, active };
  }

  #writeL1(
    active: NewActiveTables,
    hasCopies: boolean,
  ): { l1: L1Place; replacement: Replacement | undefined } {
    const { layout } = this.#context;
    const { active: source, l1Entries, oldL1 } = this.#change;
    const current = this.#currentL1();
    const isSame = source.offset === current.offset && l1Entries === current.entries;
    if (oldL1 === "dropped" && isSame && !hasCopies && active.isUpToDate(current)) {
      return { l1: current, replacement: undefined };
    }
    if (oldL1 === "dropped") this.#refcounts.addRun(this.#clustersOf(current), -1);
    const oldTables = this.#tablesOf(current);
    if (l1Entries === 0) {
      // A table without entries has no clusters.
      const content = NativeBuffer.allocate(0);
      return { l1: { offset: 0, entries: 0 }, replacement: { content, oldTables, newTables: [] } };
    }
    const { clusters, content } = active.write(source, l1Entries);
    const l1 = { offset: clusters.first * layout.clusterSize, entries: l1Entries };
    return { l1, replacement: { content, oldTables, newTables: this.#tablesOf(l1) } };
  }

  /** The clusters of the L2 tables that an L1 table names. */
  #tablesOf(l1: L1Place): number[] {
    const { clusterSize } = this.#context.layout;
    const tables: number[] = [];
    this.#trees.forEachTable(l1, (offset) => tables.push(offset / clusterSize));
    return tables;
  }

  /** Returns where the table is, host offset; 0: there is none. */
  #writeSnapshotTable(): number {
    const { storage, layout, snapshots } = this.#context;
    const { clusterSize } = layout;
    const { snapshotTable } = this.#change;
    if (snapshotTable === undefined) return snapshots.offset;
    const old = { offset: snapshots.offset, bytes: snapshots.size };
    this.#refcounts.addRun(runOf(old, clusterSize), -1);
    const { content } = snapshotTable;
    if (content.length === 0) return 0;
    const count = Math.ceil(content.length / clusterSize);
    const clusters = { first: this.#fresh.take(count), count };
    this.#refcounts.addRun(clusters, 1);
    const whole = NativeBuffer.allocate(count * clusterSize);
    whole.bytes.set(content.bytes);
    storage.writeAt(whole, 0, whole.length, clusters.first * clusterSize);
    return clusters.first * clusterSize;
  }

  #currentL1(): L1Place {
    const { state } = this.#context;
    return { offset: state.get(NUMBER.l1Offset), entries: state.get(NUMBER.l1Size) };
  }

  #clustersOf({ offset, entries }: L1Place): ClusterRun {
    return runOf({ offset, bytes: entries * 8 }, this.#context.layout.clusterSize);
  }

  /** An image whose tables refer to metadata as their data would give it away. */
  #refuseLosses({ l1, replacement, snapshotsOffset }: Prepared): void {
    const { storage, layout, allocator, snapshots } = this.#context;
    const { clusterSize } = layout;
    const kept = [{ first: 0, count: 1 }];
    const { cryptoHeader } = layout.extensions;
    if (cryptoHeader !== undefined) {
      const { offset, length: bytes } = cryptoHeader;
      kept.push(runOf({ offset, bytes }, clusterSize));
    }
    if (replacement === undefined) kept.push(this.#clustersOf(l1));
    if (snapshotsOffset !== 0 && this.#change.snapshotTable === undefined) {
      kept.push(runOf({ offset: snapshotsOffset, bytes: snapshots.size }, clusterSize));
    }
    const { table } = allocator.refcounts;
    const keptBlocks = new Set<number>();
    for (let block = table.linkedBlock(0, 1); block >= 0; block = table.linkedBlock(block + 1, 1)) {
      if (this.#refcounts.movedBlocks.has(block)) continue;
      keptBlocks.add(table.blockOffset(block) / clusterSize);
    }
    for (const { first, count } of this.#refcounts.freed()) {
      for (let cluster = first; cluster < first + count; cluster++) {
        const isKept =
          keptBlocks.has(cluster) ||
          kept.some((run) => cluster >= run.first && cluster < run.first + run.count);
        if (!isKept) continue;
        const offset = cluster * clusterSize;
        const reason = `the cluster at ${hex(offset)} would be freed, and is metadata; see tsimgfs check`;
        throw new CorruptionError(storage.path, reason, { offset });
      }
    }
  }

  /** Let the header refer to it, and all threads know. */
  #publish(prepared: Prepared, active: NewActiveTables): void {
    const { state, lock, headerWriter, layout, snapshots } = this.#context;
    const { l1, refcountTable, snapshotsOffset } = prepared;
    const { snapshotTable, virtualSize } = this.#change;
    const refcountTableOffset = refcountTable.first * layout.clusterSize;
    lock.exclusively(() => {
      headerWriter.switchStructures({
        size: virtualSize === state.get(NUMBER.virtualSize) ? undefined : virtualSize,
        l1_table_offset: l1.offset,
        l1_size: l1.entries,
        refcount_table_offset: refcountTableOffset,
        refcount_table_clusters: refcountTable.count,
        nb_snapshots: snapshotTable?.offsets.length ?? snapshots.count,
        snapshots_offset: snapshotsOffset,
      });
      this.#noteMetadata(prepared, active);
      state.set(NUMBER.virtualSize, virtualSize);
      state.set(NUMBER.l1Offset, l1.offset);
      state.set(NUMBER.l1Size, l1.entries);
      state.set(NUMBER.refcountTableOffset, refcountTableOffset);
      state.set(NUMBER.refcountTableClusters, refcountTable.count);
      if (snapshotTable !== undefined) {
        const { content, offsets, numbers } = snapshotTable;
        snapshots.replace({ offset: snapshotsOffset, size: content.length }, offsets, numbers);
      }
      lock.bumpGeneration();
    });
  }

  /** What threads know of the tables: where they are, and what is cached of them. */
  #noteMetadata({ l1, replacement }: Prepared, active: NewActiveTables): void {
    const { metadata, layout, tableCache } = this.#context;
    const { clusterSize } = layout;
    for (const { before, after } of this.#refcounts.movedBlocks.values()) {
      if (before !== 0) metadata.remove(before / clusterSize);
      metadata.add(after / clusterSize);
    }
    if (replacement === undefined) return;
    const { content, oldTables, newTables } = replacement;
    for (const cluster of oldTables) metadata.remove(cluster);
    for (const cluster of newTables) metadata.add(cluster);
    active.forEachCopy((offset) => tableCache.invalidate(offset, clusterSize));
    const start = l1.offset - (l1.offset % tableCache.sliceSize);
    tableCache.invalidate(start, content.length);
    if (layout.l1 === undefined) return;
    const words = new Int32Array(layout.l1);
    for (let word = 0; word < words.length; word++) {
      const isThere = word * 4 < content.length;
      Atomics.store(words, word, isThere ? content.view.getInt32(word * 4, true) : 0);
    }
  }

  /** Give back to the host what is free now; the old structures are among it. */
  #release(): void {
    const { state, storage, layout, punches } = this.#context;
    const { clusterSize } = layout;
    const oldBlocks = new Set<number>();
    for (const { before } of this.#refcounts.movedBlocks.values()) {
      oldBlocks.add(before / clusterSize);
    }
    const punch = (first: number, end: number): void => {
      if (!punches || end <= first) return;
      storage.zeroAt(first * clusterSize, (end - first) * clusterSize, "release");
    };
    for (const { first, count } of this.#refcounts.freed()) {
      state.set(NUMBER.freeHint, Math.min(state.get(NUMBER.freeHint), first));
      // The old blocks are read until the last run is known.
      let start = first;
      for (let cluster = first; cluster < first + count; cluster++) {
        if (!oldBlocks.has(cluster)) continue;
        punch(start, cluster);
        start = cluster + 1;
      }
      punch(start, first + count);
    }
    for (const cluster of oldBlocks) if (cluster !== 0) punch(cluster, cluster + 1);
  }
}

function runOf(
  { offset, bytes }: { offset: number; bytes: number },
  clusterSize: number,
): ClusterRun {
  return { first: offset / clusterSize, count: Math.ceil(bytes / clusterSize) };
}
