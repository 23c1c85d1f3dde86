/**
 * Raising and lowering refcounts in the order of native-notes/writing.md: clusters are counted, durably, and
 * read as zeros before anything may refer to them; what nothing refers to any more is given back to the host.
 * One thread at a time: under the structure mutex.
 */

import { hex } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import type { Qcow2Layout } from "../layout.ts";
import type { SharedSnapshotTable } from "../snapshots/shared-snapshot-table.ts";
import { metadataRanges } from "./metadata-ranges.ts";
import type { ClusterRun, RefcountStore } from "./refcount-store.ts";
import type { SessionMarks } from "./session-marks.ts";
import { NUMBER, type SharedState, WORD } from "./shared-state.ts";

export interface RefcountChangesContext {
  readonly layout: Qcow2Layout;
  readonly storage: WritableStorage;
  readonly state: SharedState;
  readonly lock: AccessLock;
  readonly metadata: MetadataMap;
  readonly snapshots: SharedSnapshotTable;
  /** Host space of freed clusters is given back. */
  readonly punches: boolean;
}

export class RefcountChanges {
  readonly #context: RefcountChangesContext;
  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #clusterSize: number;
  readonly #refcounts: RefcountStore;
  readonly #marks: SessionMarks;

  constructor(context: RefcountChangesContext, refcounts: RefcountStore, marks: SessionMarks) {
    this.#context = context;
    this.#state = context.state;
    this.#storage = context.storage;
    this.#clusterSize = context.layout.clusterSize;
    this.#refcounts = refcounts;
    this.#marks = marks;
  }

  /**
   * Count runs of free clusters as used, durably, and make them read as zeros.
   *
   * @returns what is left of the runs: some clusters become refcount blocks
   */
  raise(runs: readonly ClusterRun[]): ClusterRun[] {
    this.#refreshRanges();
    for (const run of runs) this.#requireUnused(run);
    this.#clear(runs);
    const usable: ClusterRun[] = [];
    const blocks: { block: number; cluster: number }[] = [];
    const counted: ClusterRun[] = [];
    for (const run of runs) {
      const block = Math.floor(run.first / this.#refcounts.entriesPerBlock);
      if (this.#refcounts.table.blockOffset(block) !== 0) {
        counted.push(run);
        usable.push(run);
        continue;
      }
      // The block counts itself: no other one need change for it.
      this.#refcounts.writeNewBlock(run.first, run);
      blocks.push({ block, cluster: run.first });
      if (run.count > 1) usable.push({ first: run.first + 1, count: run.count - 1 });
    }
    try {
      for (const run of counted) this.#refcounts.change(run, () => 1);
      this.#marks.sync();
      for (const { block, cluster } of blocks) this.#refcounts.table.link(block, cluster);
      if (blocks.length > 0) this.#marks.sync();
    } catch (error) {
      this.#state.raise(WORD.leaks);
      throw error;
    }
    this.#context.lock.exclusively(() => {
      for (const { cluster } of blocks) this.#context.metadata.add(cluster);
    });
    const last = runs.at(-1);
    if (last !== undefined) this.#state.set(NUMBER.freeHint, last.first + last.count);
    return usable;
  }

  /** A refcount of 0 is wrong where metadata is. */
  #requireUnused({ first, count }: ClusterRun): void {
    const what = this.#context.metadata.overlap(first, count);
    if (what === undefined) return;
    const offset = hex(first * this.#clusterSize);
    this.#marks.markCorrupt(`a cluster at or after ${offset} is free and ${what}`);
  }

  /** Let runs read as zeros: nobody must ever see what they held before. The file covers them then. */
  #clear(runs: readonly ClusterRun[]): void {
    const clusterSize = this.#clusterSize;
    const length = this.#storage.currentLength();
    let end = 0;
    for (const { first, count } of runs) {
      const offset = first * clusterSize;
      end = Math.max(end, offset + count * clusterSize);
      if (offset < length) this.#storage.zeroAt(offset, count * clusterSize, "release");
    }
    if (end > length) this.#storage.setLength(end);
  }

  /** Allocate adjacent clusters for a table, durably. Returns the first one. */
  allocateArea(clusters: number): number {
    const requireUnused = (run: ClusterRun): void => this.#requireUnused(run);
    this.#refreshRanges();
    let area = this.#refcounts.allocateArea(clusters, requireUnused);
    while (area === undefined) {
      this.growTable();
      this.#refreshRanges();
      area = this.#refcounts.allocateArea(clusters, requireUnused);
    }
    const { first, blocks } = area;
    this.#context.lock.exclusively(() => this.#addMetadata(blocks));
    return first;
  }

  #addMetadata({ first, count }: ClusterRun): void {
    for (let index = 0; index < count; index++) this.#context.metadata.add(first + index);
  }

  /** Move the refcount table to a larger place. */
  growTable(): void {
    const { table, blocks, oldTable } = this.#refcounts.growTable();
    const state = this.#state;
    this.#context.lock.exclusively(() => {
      state.set(NUMBER.refcountTableOffset, table.first * this.#clusterSize);
      state.set(NUMBER.refcountTableClusters, table.count);
      this.#addMetadata(blocks);
      this.#context.lock.bumpGeneration();
    });
    this.#marks.sync();
    this.lower([oldTable]);
  }

  /** One reference less for each cluster of the runs; those without any are given back to the host. */
  lower(runs: readonly ClusterRun[]): void {
    const clusterSize = this.#clusterSize;
    const free = new RunCollector();
    this.#refreshRanges();
    try {
      for (const run of runs) {
        this.#refcounts.change(run, (cluster, refcount) => {
          if (refcount === 0) {
            const offset = cluster * clusterSize;
            this.#marks.markCorrupt(
              `the cluster at ${hex(offset)} is freed, and is free already`,
              offset,
            );
          }
          if (refcount === 1) {
            this.#refuseMetadata(cluster);
            free.add(cluster);
          }
          return refcount - 1;
        });
      }
    } catch (error) {
      this.#state.raise(WORD.leaks);
      throw error;
    }
    for (const { first, count } of free.runs) {
      if (this.#context.punches) {
        this.#storage.zeroAt(first * clusterSize, count * clusterSize, "release");
      }
      this.#state.set(NUMBER.freeHint, Math.min(this.#state.get(NUMBER.freeHint), first));
    }
  }

  /** An entry that referred to metadata as its data would give it away. */
  #refuseMetadata(cluster: number): void {
    const what = this.#context.metadata.overlap(cluster, 1);
    if (what === undefined) return;
    const offset = cluster * this.#clusterSize;
    this.#marks.markCorrupt(`the cluster at ${hex(offset)} is freed, and is ${what}`, offset);
  }

  /** Another thread may have moved a table, and freed the place where it was. */
  #refreshRanges(): void {
    const { layout, metadata, snapshots } = this.#context;
    metadata.ranges = metadataRanges(layout, this.#state, snapshots);
  }
}

/** Joins adjacent clusters. */
class RunCollector {
  readonly runs: { first: number; count: number }[] = [];

  add(cluster: number): void {
    const last = this.runs.at(-1);
    if (last !== undefined && last.first + last.count === cluster) last.count++;
    else this.runs.push({ first: cluster, count: 1 });
  }
}
