/**
 * Storing in the image what was fetched from its backing files (native-notes/writing.md), clusters that are claimed.
 * Zeros become zero clusters at once: a table that says so is true whatever a power cut keeps. Data waits
 * in `PendingCopies` until it is durable.
 */

import assert from "node:assert";
import { printable, TsimgfsError } from "../errors.ts";
import { ALLOCATION, type Allocation, type FormatWriter } from "../formats/writer.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero } from "../syscalls/zeros.ts";
import { COUNTER, count } from "../threads/counters.ts";
import { writeLine } from "../trace.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DataWriter } from "./data-extents.ts";
import type { DiskWriter } from "./disk-writer.ts";
import type { PendingCopies } from "./pending-copies.ts";
import type { TableChanges } from "./table-changes.ts";

/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

export interface CopyStoreContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly diskWriter: DiskWriter;
  readonly data: DataWriter;
  readonly changes: TableChanges;
  readonly copies: PendingCopies;
  /** This thread's counters of the device. */
  readonly counters: Float64Array;
  /** Asks another thread to call `maintain`; undefined: nobody else does. */
  readonly requestMaintenance: (() => void) | undefined;
}

export class CopyStore {
  readonly #chain: BackingChain;
  readonly #writer: FormatWriter;
  readonly #diskWriter: DiskWriter;
  readonly #data: DataWriter;
  readonly #changes: TableChanges;
  readonly #copies: PendingCopies;
  readonly #counters: Float64Array;
  readonly #requestMaintenance: (() => void) | undefined;
  /** Pairs of offsets: zeros in the data that is being stored. */
  readonly #zeroParts: number[] = [];

  /** What is still to be stored: bytes from `#from` up to `#to`, in `#source` from `#sourceStart` on. */
  #from = 0;
  #to = 0;
  #source: NativeBuffer | undefined;
  #sourceStart = 0;
  /** A failure to store was told. */
  #hasComplained = false;
  /** Who does maintenance was told that this thread copies. */
  #isAnnounced = false;

  constructor(context: CopyStoreContext) {
    this.#chain = context.chain;
    this.#writer = context.writer;
    this.#diskWriter = context.diskWriter;
    this.#data = context.data;
    this.#changes = context.changes;
    this.#copies = context.copies;
    this.#counters = context.counters;
    this.#requestMaintenance = context.requestMaintenance;
  }

  /** As `store`, for a reader, who does not care if that fails: it is counted, and told once. */
  tryToStore(from: number, to: number, source: NativeBuffer, start: number): void {
    try {
      this.store(from, to, source, start);
    } catch (error) {
      const { clusterSize } = this.#writer;
      count(
        this.#counters,
        COUNTER.copyOnReadFailed,
        Math.ceil((this.#to - this.#from) / clusterSize),
      );
      this.complain(error);
    }
  }

  /**
   * Store what was fetched: zeros by tables, data in few writes.
   *
   * @param from guest offset, bytes; this thread has claimed all from there up to `to`: whole units, but for
   *   the end of the disk, which the image lacks
   * @param source has the bytes from `start` on
   * @throws {TsimgfsError} a part may be stored
   */
  store(from: number, to: number, source: NativeBuffer, start: number): void {
    this.#from = from;
    this.#to = to;
    this.#source = source;
    this.#sourceStart = start;
    this.#writer.begin("places");
    const { clusterSize } = this.#writer;
    let runEnd = this.#from;
    let runIsZero = false;
    while (runEnd < this.#to) {
      const clusterEnd = Math.min(runEnd - (runEnd % clusterSize) + clusterSize, this.#to);
      const isZeroCluster = this.#isZeroAt(runEnd, clusterEnd);
      if (isZeroCluster !== runIsZero) {
        this.#storeRun(runEnd, runIsZero);
        runIsZero = isZeroCluster;
      }
      runEnd = clusterEnd;
    }
    this.#storeRun(runEnd, runIsZero);
    this.#getLinked();
  }

  /** Much is linked soon; the rest after a while, by who then knows of this image. */
  #getLinked(): void {
    if (this.#requestMaintenance === undefined) {
      if (this.#copies.isMuch) this.tryToLink();
      return;
    }
    const isFirst = !this.#isAnnounced;
    this.#isAnnounced = true;
    if (this.#copies.takeWanted() || isFirst) this.#requestMaintenance();
  }

  /**
   * Link all copies that wait, as TableChanges.linkCopies. A failure is told, and they go on waiting: it
   * is no matter of who wants something else to be durable.
   *
   * @returns whether it made durable all that was written before
   */
  tryToLink(): boolean {
    try {
      return this.#changes.linkCopies();
    } catch (error) {
      if (!(error instanceof TsimgfsError)) throw error;
      this.complain(error);
      return false;
    }
  }

  #isZeroAt(start: number, end: number): boolean {
    assert(this.#source !== undefined);
    return isZero(this.#source, this.#sourceStart + start - this.#from, end - start);
  }

  /** Store clusters from `#from` on that are alike, and go on behind them. */
  #storeRun(end: number, isZeroRun: boolean): void {
    const { clusterSize, hasZeroClusters } = this.#writer;
    for (let turns = 0; this.#from < end; turns++) {
      assert(turns < TURNS_MAX, "a copy comes to no end");
      if (isZeroRun && hasZeroClusters) {
        const zeros = this.#diskWriter.copyZeros(this.#from, end - this.#from);
        this.#advance(this.#from + zeros);
        count(this.#counters, COUNTER.copyOnReadZero, Math.ceil(zeros / clusterSize));
        if (this.#from === end) return;
        // The next cluster takes more than a change of tables.
      }
      const stored = this.#storeData(end, isZeroRun);
      this.#advance(this.#from + stored);
      count(this.#counters, COUNTER.copyOnReadStored, Math.ceil(stored / clusterSize));
    }
  }

  #advance(to: number): void {
    this.#sourceStart += to - this.#from;
    this.#from = to;
  }

  /**
   * Store data from `#from` on.
   *
   * @param isZeroRun it is zeros that tables cannot say
   * @returns bytes stored; 0: what was in the way is gone, go on
   */
  #storeData(end: number, isZeroRun: boolean): number {
    const from = this.#from;
    const { plan } = this.#changes;
    const need = this.#allocate(from, end);
    if (need !== ALLOCATION.planned) {
      this.#changes.provide(need);
      return 0;
    }
    const count = Math.min(plan.coverEnd, end) - from;
    // A snapshot has the cluster too: sub-clusters come along that the image has.
    const isReplaced = plan.coverStart < from || plan.coverEnd - end >= this.#writer.unit;
    try {
      this.#zeroParts.length = 0;
      if (isReplaced) this.#fillCluster(from + count);
      else if (!(isZeroRun && this.#isZeroPlace())) this.#fill(from, from + count);
      if (!isReplaced && this.#isWholeClusters()) {
        this.#changes.addCopy(this.#copies, this.#zeroParts);
        return count;
      }
    } catch (error) {
      this.#changes.abandonPlan();
      throw error;
    }
    // More of the same cluster may follow, whose entry must know of this.
    this.#changes.provide(ALLOCATION.planned);
    return count;
  }

  #allocate(from: number, end: number): Allocation {
    const changes = this.#changes;
    changes.lockExclusive();
    try {
      if (changes.isBusy(from, end)) return ALLOCATION.inPlace;
      const need = this.#writer.allocate(from, end - from, changes.plan);
      assert(need !== ALLOCATION.inPlace, "what is claimed stays as it is");
      if (need === ALLOCATION.copiedTable) changes.claimPlan();
      return need;
    } finally {
      changes.unlockExclusive();
    }
  }

  /** Whether the plan is for clusters as a whole: nothing else of them can be planned meanwhile. */
  #isWholeClusters(): boolean {
    const { coverStart, coverEnd } = this.#changes.plan;
    const { clusterSize } = this.#writer;
    return coverStart % clusterSize === 0 && coverEnd % clusterSize === 0;
  }

  /** Whether the place that is planned reads as zeros. */
  #isZeroPlace(): boolean {
    return this.#changes.plan.fresh && !this.#data.isEncrypted;
  }

  /** Write to the place that is planned; of sub-clusters, not what is zeros there anyway. */
  #fill(from: number, to: number): void {
    const { unit, clusterSize } = this.#writer;
    if (unit === clusterSize || !this.#isZeroPlace() || !this.#isWholeClusters()) {
      this.#write(from, to);
      return;
    }
    let dataStart = from;
    for (let at = from; at < to; at += unit) {
      const unitEnd = Math.min(at + unit, to);
      if (!this.#isZeroAt(at, unitEnd)) continue;
      this.#write(dataStart, at);
      dataStart = unitEnd;
      const parts = this.#zeroParts;
      if (parts.at(-1) === at) parts[parts.length - 1] = unitEnd;
      else parts.push(at, unitEnd);
    }
    this.#write(dataStart, to);
  }

  /** Write a cluster that is replaced as a whole: what was fetched, up to `to`, and what is around it. */
  #fillCluster(to: number): void {
    const { coverStart, coverEnd, hostOffset } = this.#changes.plan;
    assert(this.#source !== undefined);
    const from = this.#from;
    const end = Math.max(to, Math.min(coverEnd, this.#chain.virtualSize));
    const cluster = NativeBuffer.allocate(end - coverStart);
    this.#changes.read(coverStart, from - coverStart, cluster, 0);
    const start = this.#sourceStart;
    const fetched = this.#source.bytes.subarray(start, start + to - from);
    cluster.bytes.set(fetched, from - coverStart);
    this.#changes.read(to, end - to, cluster, to - coverStart);
    this.#data.write(cluster, 0, end - coverStart, hostOffset, coverStart);
  }

  #write(start: number, end: number): void {
    if (end <= start) return;
    assert(this.#source !== undefined);
    const { plan } = this.#changes;
    this.#data.write(
      this.#source,
      this.#sourceStart + start - this.#from,
      end - start,
      plan.hostOffset + start - plan.coverStart,
      start,
    );
  }
  /** Tell once that storing fails: reading goes on without it. What no one expected is told each time. */
  complain(error: unknown): void {
    const isExpected = error instanceof TsimgfsError;
    if (isExpected && this.#hasComplained) return;
    this.#hasComplained = true;
    const reason = isExpected ? error.message : stackOf(error);
    const told = reason.split("\n").map(printable).join("\n");
    writeLine(`tsimgfs: what was read from a backing file could not be stored: ${told}`);
  }
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
