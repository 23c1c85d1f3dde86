/**
 * Host clusters: reserved ahead, taken, and freed late (native-notes/writing.md).
 *
 * A reservation raises the refcounts of a long run, makes the run read as zeros and the file long enough,
 * and waits until that is durable; then clusters are taken from it by a few additions. What loses its
 * last reference waits in a queue until that is durable too; only then its refcount is lowered and its
 * place on the host given back. So at any instant what a table refers to is counted, and what nothing
 * refers to is leaked at the worst.
 */

import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import { cutFile } from "../../cut-file.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import { reservationSize } from "../../reservation-size.ts";
import { Upkeep } from "../../upkeep.ts";
import type { Qcow2Layout } from "../layout.ts";
import type { SharedSnapshotTable } from "../snapshots/shared-snapshot-table.ts";
import { FreeQueue } from "./free-queue.ts";
import type { HeaderWriter } from "./header-writer.ts";
import { reclaimLeftovers } from "./leftovers.ts";
import { RefcountChanges } from "./refcount-changes.ts";
import { type ClusterRun, RefcountStore } from "./refcount-store.ts";
import { Reservation } from "./reservation.ts";
import { SessionMarks } from "./session-marks.ts";
import { NUMBER, RESERVED_MAX, type SharedState, WORD } from "./shared-state.ts";

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
  readonly snapshots: SharedSnapshotTable;
  /** Host space of freed clusters is given back. */
  readonly punches: boolean;
  /** asks another thread to call `maintain` soon; undefined: there is none. */
  readonly requestMaintenance: (() => void) | undefined;
}

export class ClusterAllocator {
  readonly frees: FreeQueue;
  readonly marks: SessionMarks;
  readonly refcounts: RefcountStore;
  readonly #context: AllocatorContext;
  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #upkeep: Upkeep;
  readonly #changes: RefcountChanges;
  readonly #clusterSize: number;
  readonly #reservation: Reservation;

  constructor(context: AllocatorContext) {
    this.#context = context;
    this.#state = context.state;
    this.#storage = context.storage;
    this.#clusterSize = context.layout.clusterSize;
    this.frees = new FreeQueue(context.state);
    this.#reservation = new Reservation(context.state);
    this.#upkeep = new Upkeep(context.state, context.requestMaintenance);
    this.marks = new SessionMarks(context.state, context.storage, context.headerWriter);
    this.refcounts = new RefcountStore(
      context.layout,
      context.storage,
      context.state,
      context.headerWriter,
      this.marks,
    );
    this.#changes = new RefcountChanges(context, this.refcounts, this.marks);
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
    if (count > 0 && this.#reservation.isLow) this.#upkeep.request();
    return count;
  }

  /** Make everything durable that was written before. Without the lock. */
  flush(): void {
    const mark = this.frees.mark();
    this.marks.sync();
    if (this.frees.markDurable(mark)) this.#upkeep.request();
  }

  /**
   * As FormatWriter.changeHeader. The size and the L1 table are changed by whoever keeps others from
   * changing them.
   */
  changeHeader(action: () => void): void {
    this.#upkeep.exclusively(() => {
      action();
      // Who finds damage holds the lock of the image, and cannot wait for this one.
      if (this.#state.isSet(WORD.corrupt)) this.marks.writeCorrupt();
    });
  }

  /** The disk becomes smaller: set the dirty bit, and cut the file at the end. Without the lock. */
  beginShrinking(): void {
    this.#upkeep.exclusively(() => {
      this.marks.markDirty();
      this.#state.raise(WORD.shrunk);
    });
  }

  /** Ask for `maintain` in another thread. */
  requestMaintenance(): void {
    this.#upkeep.request();
  }

  /** Make clusters available, unless another thread has done so. Without the lock. */
  reserve(): void {
    this.#upkeep.exclusively(() => {
      if (this.#state.isSet(WORD.corrupt)) this.marks.markCorrupt("it was found corrupt");
      if (this.#reservation.clusters > 0) return;
      // Only now: to reserve ahead is no reason to move the table far behind all that is in use.
      while (!this.#reserveRuns()) this.#changes.growTable();
    });
  }

  /** Allocate adjacent clusters for a table, durably. Returns the first one. Without the lock. */
  allocateArea(clusters: number): number {
    let first = 0;
    this.#upkeep.exclusively(() => {
      this.marks.markDirty();
      first = this.#changes.allocateArea(clusters);
    });
    return first;
  }

  /** Nobody else changes refcounts meanwhile. Without the lock of the image. */
  exclusively(action: () => void): void {
    this.#upkeep.exclusively(action);
  }

  /** References to a cluster. In `exclusively`. */
  refcountOf(cluster: number): number {
    return this.refcounts.read(cluster);
  }

  /**
   * Raise the refcounts of clusters that were taken; durable with the next flush. In `exclusively`.
   *
   * @param raised gets a cluster and its refcount, and returns the new one
   */
  raise(run: ClusterRun, raised: (cluster: number, refcount: number) => number): void {
    try {
      this.refcounts.change(run, raised);
    } catch (error) {
      this.#state.raise(WORD.leaks);
      throw error;
    }
  }

  /** Reserve ahead, and free what can be freed. Without the lock. */
  maintain(): void {
    this.#upkeep.maintain(() => {
      if (this.#state.isSet(WORD.corrupt)) return;
      const { isLow, room } = this.#reservation;
      if (isLow && room >= RESERVATION_RUNS_MAX) this.#reserveRuns();
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
      this.giveBack();
      this.#dropEmptyBlocks();
      this.#cutTail();
      this.marks.sync();
    }
    if (this.#state.isSet(WORD.leaks)) reclaimLeftovers(this.#storage);
    if (this.#state.isSet(WORD.dirty)) this.marks.clearDirty();
  }

  /** Give back what is reserved, so that what is allocated at the end lies close. Nobody else allocates. */
  giveBack(): void {
    this.#upkeep.exclusively(() => {
      this.#lowerFreed();
      const runs = this.#reservation.takeAll();
      try {
        for (const run of runs) this.refcounts.change(run, () => 0);
      } catch (error) {
        // Nobody has them any more.
        this.#state.raise(WORD.leaks);
        throw error;
      }
    });
  }

  /** Returns false if the refcount table counts no free clusters. */
  #reserveRuns(): boolean {
    this.marks.markDirty();
    const from = this.#state.get(NUMBER.freeHint);
    const runs = this.refcounts.findFree(from, this.#reservationSize(), RESERVATION_RUNS_MAX);
    if (runs.length === 0) return false;
    const usable = this.#changes.raise(runs);
    this.#context.lock.exclusively(() => this.#reservation.add(usable));
    return true;
  }

  /** Clusters of the next reservation. */
  #reservationSize(): number {
    const taken = this.#state.get(NUMBER.taken);
    const dataClusters = Math.ceil(this.#state.get(NUMBER.virtualSize) / this.#clusterSize);
    const tables = Math.ceil(dataClusters / this.#context.layout.l2Entries);
    return reservationSize(this.#clusterSize, taken, dataClusters + tables - taken);
  }

  /** Lower the refcounts of what was queued before the last `flush`. */
  #lowerFreed(): void {
    // Taken from the queue first: what fails half-way must not be lowered twice.
    const runs = this.frees.takeDurable();
    if (runs.length === 0) return;
    this.#context.lock.bumpReleases();
    this.#changes.lower(runs);
  }

  /**
   * Refcount blocks that count nothing but themselves would keep the file long: those that a reservation
   * needed where nothing came to be after all, and those of what was cut off.
   */
  #dropEmptyBlocks(): void {
    this.#upkeep.exclusively(() => {
      const blocks = this.refcounts.unlinkEmptyBlocks(this.#state.isSet(WORD.shrunk));
      if (blocks.length === 0) return;
      // A table that still refers to a block must find it as it was.
      this.marks.sync();
      const counted: ClusterRun[] = [];
      for (const cluster of blocks) {
        this.#context.metadata.remove(cluster);
        if (this.refcounts.read(cluster) > 0) counted.push({ first: cluster, count: 1 });
        else this.#storage.zeroAt(cluster * this.#clusterSize, this.#clusterSize, "release");
      }
      this.#changes.lower(counted);
    });
  }

  /** Cut off what nobody uses at the end of the file; if the disk was not cut too, as far as it is a hole, or ours. */
  #cutTail(): void {
    if (!this.#storage.resizable) return;
    const length = this.#storage.currentLength();
    const end = (this.refcounts.lastUsed() + 1) * this.#clusterSize;
    if (end === 0 || end >= length) return;
    const run = { isData: true, length: 0 };
    this.#storage.hostRun(end, run);
    const isHole = !run.isData && end + run.length >= length;
    const kept = isHole || this.#state.isSet(WORD.shrunk) ? end : this.#storage.length;
    // Small clusters are no holes: the host's blocks are larger.
    if (kept < length) cutFile(this.#storage, Math.max(end, kept));
  }
}
