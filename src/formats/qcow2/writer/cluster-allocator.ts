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
import type { Qcow2Layout } from "../layout.ts";
import type { HeaderWriter } from "./header-writer.ts";
import type { MetadataMap } from "./metadata-map.ts";
import { type ClusterRun, RefcountStore } from "./refcount-store.ts";
import { FREES_MAX, NUMBER, RESERVED_MAX, type SharedState, WORD } from "./shared-state.ts";

/** Reservations grow with what was taken, within these limits, bytes. */
const RESERVATION_MIN = 16 * 1024 * 1024;
const RESERVATION_MAX = 1024 * 1024 * 1024;
/** And are at least this many clusters, however little the disk can still need. */
const RESERVATION_CLUSTERS_MIN = 16;
/** Runs of one reservation: free space in small pieces is not all reserved at once. */
const RESERVATION_RUNS_MAX = RESERVED_MAX / 2;

/** Runs that one change of tables frees, at the most: one for each entry of a slice, and some. */
const PENDING_MAX = 1024;

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
  /** The first cluster of what `take` took. */
  taken = 0;
  readonly refcounts: RefcountStore;
  readonly #context: AllocatorContext;
  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #structure: Mutex;
  readonly #clusterSize: number;
  /** Frees that are not in the queue yet, since the tables still refer to them: first cluster, count. */
  readonly #pending = new Float64Array(PENDING_MAX * 2);
  #pendingRuns = 0;

  constructor(context: AllocatorContext) {
    this.#context = context;
    this.#state = context.state;
    this.#storage = context.storage;
    this.#clusterSize = context.layout.clusterSize;
    this.#structure = new Mutex(context.state.words, WORD.structureMutex);
    this.refcounts = new RefcountStore(
      context.layout,
      context.storage,
      context.state,
      context.headerWriter,
    );
  }

  /**
   * Take up to `wanted` adjacent clusters, which read as zeros; `taken` is the first. Under the exclusive
   * lock.
   *
   * @returns how many; 0: `reserve` first
   */
  take(wanted: number): number {
    const { reserved } = this.#state;
    const available = reserved[1] ?? 0;
    const count = Math.min(wanted, available);
    if (count === 0) return 0;
    this.taken = reserved[0] ?? 0;
    reserved[0] = this.taken + count;
    reserved[1] = available - count;
    if (available === count) this.#dropFirstExtent();
    const left = this.#state.get(NUMBER.reservedClusters) - count;
    this.#state.set(NUMBER.reservedClusters, left);
    this.#state.set(NUMBER.taken, this.#state.get(NUMBER.taken) + count);
    if (left < this.#state.get(NUMBER.lastReservation) / 2) this.askForMaintenance();
    return count;
  }

  /** Give back clusters that `take` took and nobody wrote to. Under the exclusive lock. */
  untake(first: number, count: number): void {
    const { reserved } = this.#state;
    const extents = this.#state.get(NUMBER.reservedExtents);
    if (extents === RESERVED_MAX) {
      this.free(first, count);
      this.publishFrees();
      return;
    }
    reserved.copyWithin(2, 0, extents * 2);
    reserved[0] = first;
    reserved[1] = count;
    this.#state.set(NUMBER.reservedExtents, extents + 1);
    const left = this.#state.get(NUMBER.reservedClusters) + count;
    this.#state.set(NUMBER.reservedClusters, left);
  }

  #dropFirstExtent(): void {
    const extents = this.#state.get(NUMBER.reservedExtents) - 1;
    this.#state.reserved.copyWithin(0, 2, (extents + 1) * 2);
    this.#state.reserved[extents * 2 + 1] = 0;
    this.#state.set(NUMBER.reservedExtents, extents);
  }

  /** Whether the queue takes `runs` more. */
  hasRoomToFree(runs: number): boolean {
    const { words } = this.#state;
    if (this.#state.isSet(WORD.syncFailed)) return true;
    const queued = (Atomics.load(words, WORD.freesHead) - Atomics.load(words, WORD.freesTail)) | 0;
    return queued + runs <= FREES_MAX;
  }

  /**
   * One reference less for each cluster of a run, from `publishFrees` on. Under the exclusive lock.
   */
  free(first: number, count: number): void {
    const pending = this.#pending;
    const last = (this.#pendingRuns - 1) * 2;
    if (last >= 0 && first === (pending[last] ?? 0) + (pending[last + 1] ?? 0)) {
      pending[last + 1] = (pending[last + 1] ?? 0) + count;
      return;
    }
    pending[last + 2] = first;
    pending[last + 3] = count;
    this.#pendingRuns++;
  }

  /** The tables do not refer to what was freed any more: they are written. */
  publishFrees(): void {
    const { words, frees } = this.#state;
    const runs = this.#pendingRuns;
    if (runs === 0) return;
    if (this.#state.isSet(WORD.syncFailed) || !this.hasRoomToFree(runs)) {
      this.forgetFrees();
      return;
    }
    const head = Atomics.load(words, WORD.freesHead);
    for (let run = 0; run < runs; run++) {
      const at = ((head + run) & (FREES_MAX - 1)) * 2;
      frees[at] = this.#pending[run * 2] ?? 0;
      frees[at + 1] = this.#pending[run * 2 + 1] ?? 0;
    }
    this.#pendingRuns = 0;
    Atomics.store(words, WORD.freesHead, (head + runs) | 0);
  }

  /** Nobody knows whether tables refer to it: it stays counted, perhaps for nothing. */
  forgetFrees(): void {
    this.#state.raise(WORD.leaks);
    this.#pendingRuns = 0;
  }

  /** Make everything durable that was written before. Without the lock. */
  flush(): void {
    const { words } = this.#state;
    // What is in the queue by now was unlinked by writes that came before.
    const mark = Atomics.load(words, WORD.freesHead);
    this.sync();
    let durable = Atomics.load(words, WORD.freesDurable);
    while (((mark - durable) | 0) > 0) {
      const seen = Atomics.compareExchange(words, WORD.freesDurable, durable, mark);
      if (seen === durable) break;
      durable = seen;
    }
    if (durable !== Atomics.load(words, WORD.freesTail)) this.askForMaintenance();
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

  /** Make clusters available, unless another thread has done so. Without the lock. */
  reserve(): void {
    this.#exclusively(() => {
      if (this.#state.get(NUMBER.reservedClusters) === 0) this.#reserveRun();
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
      const last = this.#state.get(NUMBER.lastReservation);
      const extents = this.#state.get(NUMBER.reservedExtents);
      const isLow = this.#state.get(NUMBER.reservedClusters) < last / 2;
      if (isLow && extents < RESERVATION_RUNS_MAX) this.#reserveRun();
      this.#lowerFreed();
    });
  }

  /** True if clusters wait to be freed. */
  hasFrees(): boolean {
    const { words } = this.#state;
    return Atomics.load(words, WORD.freesHead) !== Atomics.load(words, WORD.freesTail);
  }

  /**
   * End orderly: free what is queued, give back what is reserved, clear the dirty bit. No other thread
   * uses the image any more.
   */
  close(): void {
    this.flush();
    if (!this.#state.isSet(WORD.dirty)) return;
    this.#giveBack();
    this.#cutTail();
    this.sync();
    // What is leaked is found by the next one that writes.
    if (this.#state.isSet(WORD.leaks)) return;
    this.#context.headerWriter.setIncompatible("dirty", false);
    this.sync();
    Atomics.store(this.#state.words, WORD.dirty, 0);
  }

  #giveBack(): void {
    this.#exclusively(() => {
      this.#lowerFreed();
      const extents = this.#state.get(NUMBER.reservedExtents);
      for (let index = 0; index < extents; index++) {
        const first = this.#state.reserved[index * 2] ?? 0;
        const count = this.#state.reserved[index * 2 + 1] ?? 0;
        this.refcounts.change({ first, count }, () => 0);
      }
      this.#state.set(NUMBER.reservedExtents, 0);
      this.#state.set(NUMBER.reservedClusters, 0);
      this.#state.reserved.fill(0);
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
    this.#publish(this.#raise(runs));
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
    for (const { first, count } of runs) {
      const what = this.#context.metadata.overlap(first, count);
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

  #publish(runs: readonly ClusterRun[]): void {
    const state = this.#state;
    let clusters = 0;
    this.#exclude(() => {
      let extents = state.get(NUMBER.reservedExtents);
      for (const { first, count } of runs) {
        state.reserved[extents * 2] = first;
        state.reserved[extents * 2 + 1] = count;
        extents++;
        clusters += count;
      }
      state.set(NUMBER.reservedExtents, extents);
      state.set(NUMBER.reservedClusters, state.get(NUMBER.reservedClusters) + clusters);
      state.set(NUMBER.lastReservation, clusters);
    });
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
    this.#lower([oldTable]);
  }

  /** Lower the refcounts of what was queued before the last `flush`. */
  #lowerFreed(): void {
    const { words, frees } = this.#state;
    const tail = Atomics.load(words, WORD.freesTail);
    const durable = Atomics.load(words, WORD.freesDurable);
    const runs: ClusterRun[] = [];
    for (let at = tail; at !== durable; at = (at + 1) | 0) {
      const index = (at & (FREES_MAX - 1)) * 2;
      runs.push({ first: frees[index] ?? 0, count: frees[index + 1] ?? 0 });
    }
    // Taken from the queue first: what fails half-way must not be lowered twice.
    Atomics.store(words, WORD.freesTail, durable);
    if (runs.length > 0) this.#lower(runs.sort((a, b) => a.first - b.first));
  }

  /** One reference less for each cluster of the runs; those without any are given back to the host. */
  #lower(runs: readonly ClusterRun[]): void {
    const clusterSize = this.#clusterSize;
    const free = new RunCollector();
    try {
      for (const run of runs) {
        this.refcounts.change(run, (cluster, refcount) => {
          if (refcount === 0) {
            const offset = cluster * clusterSize;
            this.markCorrupt(`the cluster at ${hex(offset)} is freed, and is free already`, offset);
          }
          if (refcount === 1) free.add(cluster);
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
