/**
 * Host clusters: reserved ahead, taken, and freed late (DESIGN, P3).
 *
 * A reservation raises the refcounts of a long run, makes the run read as zeros and the file long enough,
 * and waits until that is durable; then clusters are taken from it by a few additions. What loses its
 * last reference waits in a queue until that is durable too; only then its refcount is lowered and its
 * place on the host given back. So at any instant what a table refers to is counted, and what nothing
 * refers to is leaked at the worst.
 */

import { CorruptionError, hex, TsimgfsError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import { Mutex } from "../../../threads/mutex.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import type { Qcow2Layout } from "../layout.ts";
import { FreeQueue } from "./free-queue.ts";
import type { HeaderWriter } from "./header-writer.ts";
import { reclaimLeftovers } from "./leftovers.ts";
import { metadataRanges } from "./metadata-ranges.ts";
import { type ClusterRun, RefcountStore } from "./refcount-store.ts";
import { Reservation } from "./reservation.ts";
import { NUMBER, RESERVED_MAX, type SharedState, WORD } from "./shared-state.ts";

/** Reservations grow with what was taken, within these limits, bytes. */
const RESERVATION_MIN = 16 * 1024 * 1024;
const RESERVATION_MAX = 1024 * 1024 * 1024;
/** And are at least this many clusters, however little the disk can still need. */
const RESERVATION_CLUSTERS_MIN = 16;
/** Runs of one reservation: free space in small pieces is not all reserved at once. */
const RESERVATION_RUNS_MAX = RESERVED_MAX / 2;

/** What the allocator works on. */
export interface AllocatorContext {
  readonly layout: Qcow2Layout;
  readonly storage: WritableStorage;
  readonly state: SharedState;
  readonly lock: AccessLock;
  readonly metadata: MetadataMap;
  readonly headerWriter: HeaderWriter;
  /** Host space of freed clusters is given back. */
  readonly punches: boolean;
  /** Asks the main thread to call `maintain` soon; undefined: there is none. */
  readonly requestMaintenance: (() => void) | undefined;
}

export class ClusterAllocator {
  readonly frees: FreeQueue;
  readonly refcounts: RefcountStore;
  readonly #context: AllocatorContext;
  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #structure: Mutex;
  readonly #clusterSize: number;
  readonly #reservation: Reservation;

  constructor(context: AllocatorContext) {
    this.#context = context;
    this.#state = context.state;
    this.#storage = context.storage;
    this.#clusterSize = context.layout.clusterSize;
    this.frees = new FreeQueue(context.state);
    this.#reservation = new Reservation(context.state);
    this.#structure = new Mutex(context.state.words, WORD.structureMutex);
    this.refcounts = new RefcountStore(
      context.layout,
      context.storage,
      context.state,
      context.headerWriter,
    );
  }

  /** The first cluster of what `take` took. */
  get taken(): number {
    return this.#reservation.taken;
  }

  /**
   * Take up to `wanted` adjacent clusters, which read as zeros; `taken` is the first. Under the exclusive
   * lock.
   *
   * @returns how many; 0: `reserve` first
   */
  take(wanted: number): number {
    const count = this.#reservation.take(wanted);
    if (count > 0 && this.#reservation.isLow) this.askForMaintenance();
    return count;
  }

  /** Make everything durable that was written before. Without the lock. */
  flush(): void {
    const mark = this.frees.mark();
    this.sync();
    if (this.frees.markDurable(mark)) this.askForMaintenance();
  }

  /**
   * Wait until what was written is durable. After a failure nobody knows what is: no cluster changes its
   * owner any more.
   */
  sync(): void {
    if (this.#state.isSet(WORD.syncFailed)) {
      throw new TsimgfsError("EIO", this.#storage.path, "an earlier fdatasync failed");
    }
    try {
      this.#storage.sync();
    } catch (error) {
      if (!(error instanceof TsimgfsError && error.code === "ENOSPC")) {
        this.#state.raise(WORD.syncFailed);
      }
      throw error;
    }
  }

  /**
   * As FormatWriter.changeHeader. The size and the L1 table are changed by whoever keeps others from
   * changing them.
   */
  changeHeader(action: () => void): void {
    this.#exclusively(() => {
      action();
      // Who finds damage holds the lock of the image, and cannot wait for this one.
      if (!this.#state.isSet(WORD.corrupt)) return;
      this.#context.headerWriter.setIncompatible("corrupt", true);
      this.#storage.sync();
    });
  }

  /** Make clusters available, unless another thread has done so. Without the lock. */
  reserve(): void {
    this.#exclusively(() => {
      if (this.#state.isSet(WORD.corrupt)) this.markCorrupt("it was found corrupt");
      if (this.#reservation.clusters === 0) this.#reserveRun();
    });
  }

  /** Allocate adjacent clusters for a table, durably. Returns the first one. Without the lock. */
  allocateArea(clusters: number): number {
    let first = 0;
    this.#exclusively(() => {
      this.#markDirty();
      let area = this.refcounts.allocateArea(clusters);
      while (area === undefined) {
        this.#growRefcountTable();
        area = this.refcounts.allocateArea(clusters);
      }
      const { blocks } = area;
      this.#exclude(() => {
        for (let index = 0; index < blocks.count; index++) {
          this.#context.metadata.add(blocks.first + index);
        }
      });
      first = area.first;
    });
    return first;
  }

  /** Reserve ahead, and free what can be freed. Without the lock. */
  maintain(): void {
    Atomics.store(this.#state.words, WORD.wanted, 0);
    this.#exclusively(() => {
      if (this.#state.isSet(WORD.corrupt)) return;
      const { isLow, room } = this.#reservation;
      if (isLow && room >= RESERVATION_RUNS_MAX) this.#reserveRun();
      this.#lowerFreed();
    });
  }

  /**
   * End orderly: free what is queued, give back what is reserved, clear the dirty bit. No other thread
   * uses the image any more.
   */
  close(): void {
    this.flush();
    if (this.#state.isSet(WORD.dirty)) {
      this.#giveBack();
      this.#cutTail();
      this.sync();
    }
    if (this.#state.isSet(WORD.leaks)) reclaimLeftovers(this.#storage);
    if (!this.#state.isSet(WORD.dirty)) return;
    this.#context.headerWriter.setIncompatible("dirty", false);
    this.sync();
    Atomics.store(this.#state.words, WORD.dirty, 0);
  }

  #giveBack(): void {
    this.#exclusively(() => {
      this.#lowerFreed();
      for (const run of this.#reservation.takeAll()) this.refcounts.change(run, () => 0);
    });
  }

  /**
   * Write down that the image is corrupt: nothing more is written to it.
   *
   * @throws {CorruptionError} always
   */
  markCorrupt(reason: string, offset?: number): never {
    if (!this.#state.isSet(WORD.corrupt)) {
      this.#state.raise(WORD.corrupt);
      this.#context.headerWriter.setIncompatible("corrupt", true);
      this.#storage.sync();
    }
    const text = `${reason}; the image is marked corrupt and not written to any more`;
    throw new CorruptionError(this.#storage.path, text, offset === undefined ? {} : { offset });
  }

  askForMaintenance(): void {
    const { requestMaintenance } = this.#context;
    if (requestMaintenance === undefined) return;
    if (Atomics.exchange(this.#state.words, WORD.wanted, 1) === 0) requestMaintenance();
  }

  #exclusively(action: () => void): void {
    this.#structure.lock();
    try {
      action();
    } finally {
      this.#structure.unlock();
    }
  }

  #reserveRun(): void {
    this.#markDirty();
    const wanted = this.#reservationSize();
    let runs = this.refcounts.findFree(
      this.#state.get(NUMBER.freeHint),
      wanted,
      RESERVATION_RUNS_MAX,
    );
    while (runs.length === 0) {
      this.#growRefcountTable();
      const from = this.#state.get(NUMBER.freeHint);
      runs = this.refcounts.findFree(from, wanted, RESERVATION_RUNS_MAX);
    }
    const usable = this.#raise(runs);
    this.#exclude(() => this.#reservation.add(usable));
  }

  /** Clusters of the next reservation: as many as were taken so far, not more than the disk may need. */
  #reservationSize(): number {
    const clusterSize = this.#clusterSize;
    const taken = this.#state.get(NUMBER.taken);
    const grown = Math.max(RESERVATION_MIN / clusterSize, taken);
    const size = this.#state.get(NUMBER.virtualSize);
    const dataClusters = Math.ceil(size / clusterSize);
    const tables = Math.ceil(dataClusters / this.#context.layout.l2Entries);
    const needed = Math.max(dataClusters + tables - taken, RESERVATION_CLUSTERS_MIN);
    return Math.ceil(Math.min(grown, RESERVATION_MAX / clusterSize, needed));
  }

  /** The dirty bit tells the next writer that clusters may be leaked. Version 2 has no such bit. */
  #markDirty(): void {
    if (this.#state.isSet(WORD.dirty)) return;
    this.#context.headerWriter.setIncompatible("dirty", true);
    this.sync();
    this.#state.raise(WORD.dirty);
  }

  /**
   * Count runs of free clusters as used, durably, and make them read as zeros.
   *
   * @returns what is left of the runs: some clusters become refcount blocks
   */
  #raise(runs: readonly ClusterRun[]): ClusterRun[] {
    const clusterSize = this.#clusterSize;
    const { metadata } = this.#context;
    this.#refreshRanges();
    for (const { first, count } of runs) {
      const what = metadata.overlap(first, count);
      if (what === undefined) continue;
      this.markCorrupt(`a cluster at or after ${hex(first * clusterSize)} is free and ${what}`);
    }
    this.#clear(runs);
    const usable: ClusterRun[] = [];
    const blocks: { block: number; cluster: number }[] = [];
    const counted: ClusterRun[] = [];
    for (const run of runs) {
      const block = Math.floor(run.first / this.refcounts.entriesPerBlock);
      if (this.refcounts.blockOffset(block) !== 0) {
        counted.push(run);
        usable.push(run);
        continue;
      }
      // The block counts itself: no other one need change for it.
      this.refcounts.writeNewBlock(run.first, run);
      blocks.push({ block, cluster: run.first });
      if (run.count > 1) usable.push({ first: run.first + 1, count: run.count - 1 });
    }
    try {
      for (const run of counted) this.refcounts.change(run, () => 1);
      this.sync();
      for (const { block, cluster } of blocks) this.refcounts.linkBlock(block, cluster);
      if (blocks.length > 0) this.sync();
    } catch (error) {
      this.#state.raise(WORD.leaks);
      throw error;
    }
    this.#exclude(() => {
      for (const { cluster } of blocks) this.#context.metadata.add(cluster);
    });
    const last = runs.at(-1);
    if (last !== undefined) this.#state.set(NUMBER.freeHint, last.first + last.count);
    return usable;
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

  #growRefcountTable(): void {
    const { table, blocks, oldTable } = this.refcounts.growTable();
    const state = this.#state;
    this.#exclude(() => {
      state.set(NUMBER.refcountTableOffset, table.first * this.#clusterSize);
      state.set(NUMBER.refcountTableClusters, table.count);
      for (let index = 0; index < blocks.count; index++) {
        this.#context.metadata.add(blocks.first + index);
      }
      this.#context.lock.bumpGeneration();
    });
    this.sync();
    this.#lower([oldTable]);
  }

  /** Lower the refcounts of what was queued before the last `flush`. */
  #lowerFreed(): void {
    // Taken from the queue first: what fails half-way must not be lowered twice.
    const runs = this.frees.takeDurable();
    if (runs.length > 0) this.#lower(runs);
  }

  /** One reference less for each cluster of the runs; those without any are given back to the host. */
  #lower(runs: readonly ClusterRun[]): void {
    const clusterSize = this.#clusterSize;
    const free = new RunCollector();
    this.#refreshRanges();
    try {
      for (const run of runs) {
        this.refcounts.change(run, (cluster, refcount) => {
          if (refcount === 0) {
            const offset = cluster * clusterSize;
            this.markCorrupt(`the cluster at ${hex(offset)} is freed, and is free already`, offset);
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
    this.markCorrupt(`the cluster at ${hex(offset)} is freed, and is ${what}`, offset);
  }

  /** Another thread may have moved a table, and freed the place where it was. */
  #refreshRanges(): void {
    const { layout, metadata } = this.#context;
    metadata.ranges = metadataRanges(layout, this.#state);
  }

  /** Cut off what nobody uses at the end of the file, as far as it is a hole. */
  #cutTail(): void {
    if (!this.#storage.resizable) return;
    const length = this.#storage.currentLength();
    const end = (this.refcounts.lastUsed() + 1) * this.#clusterSize;
    if (end === 0 || end >= length) return;
    const run = { isData: true, length: 0 };
    this.#storage.hostRun(end, run);
    if (!run.isData && end + run.length >= length) this.#storage.setLength(end);
  }

  #exclude(action: () => void): void {
    this.#context.lock.lockExclusive();
    try {
      action();
    } finally {
      this.#context.lock.unlockExclusive();
    }
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
