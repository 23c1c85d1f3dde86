/**
 * Host clusters: reserved ahead at the end of the file, and taken from there (native-notes/writing.md).
 *
 * QED counts nothing: what lies behind the last cluster in use is free. A reservation makes the file longer
 * by a long run that reads as zeros, and waits until that is durable; then clusters are taken from it by
 * an addition. So at any instant what a table refers to is within the file, and what nothing refers to is
 * leaked at the worst. What an earlier writer has leaked among clusters in use becomes zeros with the first
 * reservation, and is taken first.
 *
 * The need-check bit is set as long as the session lasts. QEMU clears it some seconds after the last
 * allocation; here the file ends in a reservation until it is closed, which would be leaked, and nobody
 * would know, if the bit were gone.
 */

import { CorruptionError, StorageError, TsimgfsError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { AccessLock } from "../../../threads/access-lock.ts";
import { cutFile } from "../../cut-file.ts";
import { reservationSize } from "../../reservation-size.ts";
import { Upkeep } from "../../upkeep.ts";
import type { QedLayout } from "../layout.ts";
import { examineTables } from "./examine-tables.ts";
import type { HeaderWriter } from "./header-writer.ts";
import { NUMBER, type SharedState, WORD } from "./shared-state.ts";
import { UnusedClusters } from "./unused-clusters.ts";

/** What the allocator works on. */
export interface AllocatorContext {
  readonly layout: QedLayout;
  readonly storage: WritableStorage;
  readonly state: SharedState;
  readonly lock: AccessLock;
  readonly headerWriter: HeaderWriter;
  /** asks another thread to call `maintain` soon; undefined: there is none. */
  readonly requestMaintenance: (() => void) | undefined;
}

export class ClusterAllocator {
  /** The first cluster of what was taken last. */
  taken = 0;
  readonly #context: AllocatorContext;
  readonly #state: SharedState;
  readonly #storage: WritableStorage;
  readonly #upkeep: Upkeep;
  readonly #gaps: UnusedClusters;
  readonly #givenUp: UnusedClusters;
  readonly #clusterSize: number;
  /** Clusters of an L2 table. */
  readonly #tableClusters: number;

  constructor(context: AllocatorContext) {
    this.#context = context;
    this.#state = context.state;
    this.#storage = context.storage;
    this.#upkeep = new Upkeep(context.state, context.requestMaintenance);
    this.#gaps = new UnusedClusters(context.state.gaps);
    this.#givenUp = new UnusedClusters(context.state.givenUp);
    this.#clusterSize = context.layout.header.cluster_size;
    this.#tableClusters = context.layout.header.table_size;
  }

  /**
   * Take up to `wanted` adjacent clusters, which read as zeros; `taken` is the first. Under the exclusive
   * lock.
   *
   * @returns how many; 0: `reserve` first
   */
  take(wanted: number): number {
    const inGap = this.#state.isSet(WORD.gapsClear) ? this.#gaps.take(wanted) : 0;
    if (inGap === 0) return this.#takeReserved(wanted);
    this.taken = this.#gaps.taken;
    return inGap;
  }

  /** Take the clusters of an L2 table, as `take`. False: `reserve` first. */
  takeTable(): boolean {
    return this.#available >= this.#tableClusters && this.#takeReserved(this.#tableClusters) > 0;
  }

  /** Ask for `maintain` in another thread. */
  requestMaintenance(): void {
    this.#upkeep.request();
  }

  #takeReserved(wanted: number): number {
    const count = Math.min(wanted, this.#available);
    if (count === 0) return 0;
    const state = this.#state;
    this.taken = state.get(NUMBER.nextCluster);
    state.set(NUMBER.nextCluster, this.taken + count);
    state.set(NUMBER.taken, state.get(NUMBER.taken) + count);
    if (this.#isLow) this.#upkeep.request();
    return count;
  }

  /**
   * Take a cluster that was given up before, as `take`: one that may hold anything, and is for what is
   * written as a whole and made durable before it is linked. False: there is none.
   */
  takeGivenUp(): boolean {
    const count = this.#givenUp.take(1);
    if (count > 0) this.taken = this.#givenUp.taken;
    return count > 0;
  }

  /** Nothing will refer to clusters that were taken, whatever they hold by now. Under the exclusive lock. */
  giveUp(first: number, count: number): void {
    this.#context.lock.bumpReleases();
    this.#givenUp.add(first, count);
    // At the end only a look at all tables tells which clusters are the last in use.
    this.#state.raise(WORD.leaks);
  }

  /**
   * Wait until what was written is durable. After a failure nobody knows what is: the need-check bit stays.
   */
  sync(): void {
    this.#refuseAfterFailure();
    try {
      this.#storage.sync();
    } catch (error) {
      this.#state.raise(WORD.syncFailed);
      throw error;
    }
  }

  /** As FormatWriter.changeHeader. The size is changed by whoever keeps others from changing it. */
  changeHeader(action: () => void): void {
    this.#upkeep.exclusively(action);
  }

  /** Make clusters available, unless another thread has done so. Without the lock. */
  reserve(): void {
    this.#upkeep.exclusively(() => {
      if (this.#state.isSet(WORD.corrupt)) this.refuseCorrupt("it was found corrupt");
      if (this.#available >= this.#tableClusters) return;
      this.#reserveRun();
      if (this.#available < this.#tableClusters) this.#throwFull();
    });
  }

  /** Reserve ahead. Without the lock. */
  maintain(): void {
    this.#upkeep.maintain(() => {
      if (this.#state.isSet(WORD.corrupt) || this.#state.isSet(WORD.syncFailed)) return;
      if (this.#isLow) this.#reserveRun();
    });
  }

  /**
   * End orderly: cut off what is reserved, clear the need-check bit. No other thread uses the image any
   * more.
   */
  close(): void {
    this.sync();
    if (!this.#state.isSet(WORD.needCheck)) return;
    this.#cutTail();
    this.sync();
    this.#context.headerWriter.setNeedCheck(false);
    this.sync();
    Atomics.store(this.#state.words, WORD.needCheck, 0);
  }

  /**
   * Write nothing more to the image. QED has no bit that says why; need-check stays if it is set.
   *
   * @throws {CorruptionError} always
   */
  refuseCorrupt(reason: string, offset?: number): never {
    this.#state.raise(WORD.corrupt);
    const text = `${reason}; the image is not written to any more, see tsimgfs check`;
    throw new CorruptionError(this.#storage.path, text, offset === undefined ? {} : { offset });
  }

  get #available(): number {
    return this.#state.get(NUMBER.reservedEnd) - this.#state.get(NUMBER.nextCluster);
  }

  /** Less than half is left of what was reserved last. */
  get #isLow(): boolean {
    return this.#available < this.#state.get(NUMBER.lastReservation) / 2;
  }

  #refuseAfterFailure(): void {
    if (!this.#state.isSet(WORD.syncFailed)) return;
    throw new TsimgfsError("EIO", this.#storage.path, "an earlier fdatasync failed");
  }

  #reserveRun(): void {
    this.#refuseAfterFailure();
    this.#markNeedCheck();
    const state = this.#state;
    const clusterSize = this.#clusterSize;
    const start = state.get(NUMBER.reservedEnd);
    const end = this.#endOfRun(start);
    if (end === start) return;
    const length = this.#storage.currentLength();
    const offset = start * clusterSize;
    const endOffset = end * clusterSize;
    // Behind the last cluster in use there may be anything: a leaked cluster, or a part of one.
    if (offset < length) this.#storage.zeroAt(offset, endOffset - offset, "release");
    if (endOffset > length) this.#storage.setLength(endOffset);
    if (!state.isSet(WORD.gapsClear)) this.#clearGaps();
    this.sync();
    const { lock } = this.#context;
    lock.exclusively(() => {
      state.set(NUMBER.reservedEnd, end);
      state.set(NUMBER.fileClusters, Math.max(end, state.get(NUMBER.fileClusters)));
      state.set(NUMBER.lastReservation, this.#available);
      state.raise(WORD.gapsClear);
      // Readers must know that the file is longer before a table refers to what is new.
      lock.bumpGeneration();
    });
  }

  /** Let them read as zeros: nobody must ever see what they held before. */
  #clearGaps(): void {
    const clusterSize = this.#clusterSize;
    for (const { first, count } of this.#gaps) {
      this.#storage.zeroAt(first * clusterSize, count * clusterSize, "release");
    }
  }

  /** Where a run from cluster `start` on ends. */
  #endOfRun(start: number): number {
    const end = start + this.#reservationSize();
    if (this.#storage.resizable) return end;
    const clusters = Math.floor(this.#storage.currentLength() / this.#clusterSize);
    return Math.max(start, Math.min(end, clusters));
  }

  #throwFull(): never {
    const { path, length } = this.#storage;
    const reason = `no free clusters are left on this device of ${length} bytes: a QED image grows at its end`;
    throw new StorageError("ENOSPC", path, reason);
  }

  /** Clusters of the next reservation: as many as were taken so far, not more than the disk may need. */
  #reservationSize(): number {
    const { tableEntries } = this.#context.layout;
    const state = this.#state;
    const clusterSize = this.#clusterSize;
    const taken = state.get(NUMBER.taken);
    const dataClusters = Math.ceil(state.get(NUMBER.virtualSize) / clusterSize);
    const tables = Math.ceil(dataClusters / tableEntries) * this.#tableClusters;
    const inUse = state.get(NUMBER.usedAtOpen) + taken;
    const wanted = reservationSize(clusterSize, taken, dataClusters + tables - inUse);
    // A table and a cluster of data: less would not do for the next write.
    return Math.max(wanted, this.#tableClusters + 1);
  }

  /** The bit tells the next writer that the file may end in clusters which nothing refers to. */
  #markNeedCheck(): void {
    if (this.#state.isSet(WORD.needCheck)) return;
    this.#context.headerWriter.setNeedCheck(true);
    this.sync();
    this.#state.raise(WORD.needCheck);
  }

  /** Cut off what lies behind the last cluster in use. */
  #cutTail(): void {
    if (!this.#storage.resizable) return;
    const state = this.#state;
    const end = state.isSet(WORD.leaks)
      ? examineTables(this.#storage).usedEnd / this.#clusterSize
      : state.get(NUMBER.nextCluster);
    const length = Math.max(end, state.get(NUMBER.keptClusters)) * this.#clusterSize;
    if (length < this.#storage.currentLength()) cutFile(this.#storage, length);
  }
}
