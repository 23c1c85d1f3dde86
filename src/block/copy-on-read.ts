/**
 * Copy-on-read (DESIGN, P5): what an image lacks is read from its backing files, whole clusters, and
 * stored in the image, so that it is never read there again. Whoever reads is served first: what was
 * fetched is stored by `store`, when the reply is on its way. Until then the range is claimed, so a second
 * reader waits instead of fetching it too, and a writer comes after the copy, which his bytes replace.
 *
 * Zeros become zero clusters at once: a table that says so is true whatever a power cut keeps. Data waits
 * in `PendingCopies` until it is durable.
 */

import assert from "node:assert";
import { printable, TsimgfsError } from "../errors.ts";
import { EXTENT, Extent, type FormatImage } from "../formats/driver.ts";
import { ALLOCATION, type Allocation, type FormatWriter } from "../formats/writer.ts";
import type { WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero } from "../syscalls/zeros.ts";
import { COUNTER } from "../threads/counters.ts";
import { writeLine } from "../trace.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DiskWriter } from "./disk-writer.ts";
import type { PendingCopies } from "./pending-copies.ts";
import type { TableChanges } from "./table-changes.ts";

/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;
/** Scratch memory is made in multiples of this, bytes. */
const SCRATCH_UNIT = 1024 * 1024;
/** `copy` claims about this many bytes at once: who wants to write there waits that long. */
const COPY_MAX = 1024 * 1024;

export interface CopyOnReadContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly diskWriter: DiskWriter;
  readonly dataStorage: WritableStorage;
  readonly changes: TableChanges;
  readonly copies: PendingCopies;
  /** This thread's counters of the device. */
  readonly counters: Float64Array;
  /** Asks another thread to call `maintain`; undefined: nobody else does. */
  readonly requestMaintenance: (() => void) | undefined;
}

export class CopyOnRead {
  readonly #chain: BackingChain;
  readonly #writer: FormatWriter;
  readonly #diskWriter: DiskWriter;
  readonly #dataStorage: WritableStorage;
  readonly #changes: TableChanges;
  readonly #copies: PendingCopies;
  readonly #counters: Float64Array;
  readonly #requestMaintenance: (() => void) | undefined;
  readonly #extent = new Extent();
  /** Pairs of offsets: zeros in the data that is being stored. */
  readonly #zeroParts: number[] = [];
  #scratch: NativeBuffer | undefined;

  /** What is claimed: bytes from `#from` up to `#to`, of whole units but for the end of the disk. */
  #from = 0;
  #to = 0;
  /** It was fetched and is to be stored: it is in `#source` from `#sourceStart` on. */
  #hasFetched = false;
  #source: NativeBuffer | undefined;
  #sourceStart = 0;
  /** A failure to store was told. */
  #hasComplained = false;
  /** Who does maintenance was told that this thread copies. */
  #isAnnounced = false;
  #copied = 0;

  constructor(context: CopyOnReadContext) {
    this.#chain = context.chain;
    this.#writer = context.writer;
    this.#diskWriter = context.diskWriter;
    this.#dataStorage = context.dataStorage;
    this.#changes = context.changes;
    this.#copies = context.copies;
    this.#counters = context.counters;
    this.#requestMaintenance = context.requestMaintenance;
  }

  /** Something was fetched that waits for `store`; its bytes may be in the target of the read. */
  get hasFetched(): boolean {
    return this.#hasFetched;
  }

  /**
   * Read as Disk.read. Before the target is used for something else, and before this thread does anything
   * else with the disk: `store`.
   *
   * @throws {CorruptionError | StorageError} what was asked for cannot be read
   */
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    try {
      this.#readPieces(guestOffset, length, target, start);
    } catch (error) {
      // Nobody calls `store` for a read that has failed, and the target is soon used for another one.
      this.store();
      throw error;
    }
  }

  #readPieces(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    let done = 0;
    for (let turns = 0; ; turns++) {
      assert(turns < TURNS_MAX, "a read comes to no end");
      done += this.#readOwn(guestOffset + done, length - done, target, start + done);
      if (done === length) return;
      this.store();
      done += this.#fetchFor(guestOffset + done, length - done, target, start + done);
    }
  }

  #readOwn(guestOffset: number, length: number, target: NativeBuffer, start: number): number {
    this.#changes.lockShared();
    try {
      return this.#chain.readOwn(guestOffset, length, target, start);
    } finally {
      this.#changes.unlockShared();
    }
  }

  /** Read a start of a range that the image lacks. Returns its length; 0: look again. */
  #fetchFor(guestOffset: number, length: number, target: NativeBuffer, start: number): number {
    try {
      if (!this.#claim(guestOffset, length)) return 0;
    } catch (error) {
      // What waits could not be linked: it is read as if there were no copying.
      if (!(error instanceof TsimgfsError)) throw error;
      this.#complain(error);
      return this.#readPlainly(guestOffset, length, target, start);
    }
    const count = Math.min(this.#to - guestOffset, length);
    const isInside = this.#from === guestOffset && this.#to <= guestOffset + length;
    try {
      if (isInside) this.#fetch(target, start);
      else {
        const scratch = this.#scratchOf(this.#to - this.#from);
        this.#fetch(scratch, 0);
        const skip = guestOffset - this.#from;
        target.bytes.set(scratch.bytes.subarray(skip, skip + count), start);
      }
    } catch {
      // Perhaps only what was not asked for cannot be read.
      this.#changes.releaseCopy();
      return this.#readPlainly(guestOffset, length, target, start);
    }
    return count;
  }

  #readPlainly(guestOffset: number, length: number, target: NativeBuffer, start: number): number {
    this.#changes.lockShared();
    try {
      this.#chain.read(guestOffset, length, target, start);
    } finally {
      this.#changes.unlockShared();
    }
    return length;
  }

  /** Read what is claimed from below. */
  #fetch(target: NativeBuffer, start: number): void {
    this.#chain.readBelow(this.#from, this.#to - this.#from, target, start);
    this.#source = target;
    this.#sourceStart = start;
    this.#hasFetched = true;
  }

  /**
   * Claim whole clusters around the start of a range that the image lacks. Without the lock.
   *
   * @returns false: nothing is claimed, look again
   * @throws {TsimgfsError} copies that are in the way cannot be linked
   */
  #claim(guestOffset: number, length: number): boolean {
    this.#changes.lockExclusive();
    try {
      this.#findMissing(guestOffset, length);
      if (this.#to <= guestOffset) return false;
      if (!this.#changes.isBusy(this.#from, this.#to)) {
        this.#changes.claimCopy(this.#from, this.#to);
        return true;
      }
    } finally {
      this.#changes.unlockExclusive();
    }
    this.#changes.provide(ALLOCATION.inPlace);
    return false;
  }

  /** Set the bounds of what the image lacks around the start of a range. */
  #findMissing(guestOffset: number, length: number): void {
    const { unit, clusterSize } = this.#writer;
    const { virtualSize } = this.#chain;
    this.#to = guestOffset;
    // Another thread may just have cut it off.
    if (guestOffset >= virtualSize) return;
    const clusterStart = guestOffset - (guestOffset % clusterSize);
    let from = guestOffset - (guestOffset % unit);
    if (from > clusterStart && this.#missingEnd(clusterStart, from) === from) from = clusterStart;
    const wantedEnd = Math.ceil((guestOffset + length) / clusterSize) * clusterSize;
    this.#from = from;
    this.#to = this.#missingEnd(from, Math.min(wantedEnd, virtualSize));
  }

  /** How far, up to `limit`, the image has nothing from `start` on. */
  #missingEnd(start: number, limit: number): number {
    const extent = this.#extent;
    let end = start;
    while (end < limit) {
      this.#chain.image.mapExtent(end, limit - end, extent);
      if (extent.kind !== EXTENT.unallocated) break;
      end += extent.length;
    }
    return end;
  }

  /** Bytes that `copy` has copied so far. */
  get copied(): number {
    return this.#copied;
  }

  /**
   * Copy the start of a range from the images above `bottom` in the chain. Where nothing is below
   * `bottom`, what reads as zeros for all that tables and the host say is left out: it still will.
   *
   * @param bottom index of the first image that is not copied from
   * @returns bytes that are done: copied, or there before, or not to be copied
   * @throws {CorruptionError | StorageError} it cannot be read or stored
   */
  copy(guestOffset: number, length: number, bottom: number): number {
    this.store();
    for (let turns = 0; ; turns++) {
      assert(turns < TURNS_MAX, "a copy comes to no end");
      const skipped = this.#skip(guestOffset, length, bottom);
      if (skipped > 0) return skipped;
      const wanted = Math.min(length, COPY_MAX, this.#to - guestOffset);
      if (!this.#claim(guestOffset, wanted)) continue;
      const [start, end] = [this.#from, this.#to];
      try {
        this.#fetch(this.#scratchOf(end - start), 0);
        this.#storeFetched();
        this.#copied += end - start;
      } finally {
        this.#hasFetched = false;
        this.#changes.releaseCopy();
      }
      return Math.min(length, end - guestOffset);
    }
  }

  /**
   * Bytes from `guestOffset` on, whole clusters, that need not be copied; 0: `#to` is the end of what must
   * be, at the most.
   */
  #skip(guestOffset: number, length: number, bottom: number): number {
    const { clusterSize } = this.#writer;
    this.#changes.lockShared();
    try {
      const end = Math.min(guestOffset + length, this.#chain.virtualSize);
      // Another thread may just have cut it off.
      if (end <= guestOffset) return length;
      const extent = this.#extent;
      this.#chain.image.mapExtent(guestOffset, end - guestOffset, extent);
      if (extent.kind !== EXTENT.unallocated) return extent.length;
      const missingEnd = guestOffset + extent.length;
      let at = guestOffset;
      while (at < missingEnd && !this.#mustCopy(at, missingEnd - at, bottom)) at += extent.length;
      // A cluster of which a part is to be copied is copied as a whole.
      const skipped = at >= missingEnd ? missingEnd : at - (at % clusterSize);
      if (skipped > guestOffset) return skipped - guestOffset;
      const far = Math.min(missingEnd, at + COPY_MAX);
      while (at < far && this.#mustCopy(at, missingEnd - at, bottom)) at += extent.length;
      this.#to = Math.min(Math.ceil(at / clusterSize) * clusterSize, end);
      return 0;
    } finally {
      this.#changes.unlockShared();
    }
  }

  /** Whether a byte must be copied from the images above `bottom`; `#extent` says how far. */
  #mustCopy(guestOffset: number, maxLength: number, bottom: number): boolean {
    const { images } = this.#chain;
    const extent = this.#extent;
    const hides = bottom < images.length;
    let length = maxLength;
    for (let depth = 1; depth < images.length; depth++) {
      const image = images[depth];
      if (image === undefined || depth >= bottom) break;
      if (guestOffset >= image.virtualSize) {
        // Zeros, which hide what is below.
        extent.length = length;
        return hides;
      }
      image.mapExtent(guestOffset, length, extent);
      if (extent.kind === EXTENT.zero) return hides;
      if (extent.kind !== EXTENT.unallocated) return hides || !this.#isHostHole(image);
      length = extent.length;
    }
    extent.length = length;
    return false;
  }

  /** Whether `#extent`, or the start of it that it then is cut to, is a hole of an image's file. */
  #isHostHole(image: FormatImage): boolean {
    const extent = this.#extent;
    if (extent.kind !== EXTENT.data || !image.mayHaveHostHoles()) return false;
    extent.length = Math.min(extent.length, COPY_MAX);
    return image.dataStorage.isHole(extent.hostOffset, extent.length);
  }

  /** Store what was fetched for a reader, who does not care if that fails. */
  store(): void {
    if (!this.#hasFetched) return;
    this.#hasFetched = false;
    const { clusterSize } = this.#writer;
    try {
      this.#storeFetched();
    } catch (error) {
      this.#count(COUNTER.copyOnReadFailed, Math.ceil((this.#to - this.#from) / clusterSize));
      this.#complain(error);
    } finally {
      this.#changes.releaseCopy();
    }
  }

  /** Store what was fetched: zeros by tables, data as few writes. `#from` follows what is done. */
  #storeFetched(): void {
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
      this.#complain(error);
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
        this.#count(COUNTER.copyOnReadZero, Math.ceil(zeros / clusterSize));
        if (this.#from === end) return;
        // The next cluster takes more than a change of tables.
      }
      const count = this.#storeData(end, isZeroRun);
      this.#advance(this.#from + count);
      this.#count(COUNTER.copyOnReadStored, Math.ceil(count / clusterSize));
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
      else if (!(isZeroRun && plan.fresh)) this.#fill(from, from + count);
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

  /** Write to the place that is planned; of sub-clusters, not what is zeros there anyway. */
  #fill(from: number, to: number): void {
    const { plan } = this.#changes;
    const { unit, clusterSize } = this.#writer;
    if (unit === clusterSize || !plan.fresh || !this.#isWholeClusters()) {
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
    this.#readPlainly(coverStart, from - coverStart, cluster, 0);
    const start = this.#sourceStart;
    const fetched = this.#source.bytes.subarray(start, start + to - from);
    cluster.bytes.set(fetched, from - coverStart);
    this.#readPlainly(to, end - to, cluster, to - coverStart);
    this.#dataStorage.writeAt(cluster, 0, end - coverStart, hostOffset);
  }

  #write(start: number, end: number): void {
    if (end <= start) return;
    assert(this.#source !== undefined);
    const { plan } = this.#changes;
    this.#dataStorage.writeAt(
      this.#source,
      this.#sourceStart + start - this.#from,
      end - start,
      plan.hostOffset + start - plan.coverStart,
    );
  }

  #scratchOf(length: number): NativeBuffer {
    if (this.#scratch === undefined || this.#scratch.length < length) {
      const size = Math.ceil(length / SCRATCH_UNIT) * SCRATCH_UNIT;
      this.#scratch = NativeBuffer.allocate(size);
    }
    return this.#scratch;
  }

  #count(counter: number, amount: number): void {
    this.#counters[counter] = (this.#counters[counter] ?? 0) + amount;
  }

  /** Tell once that storing fails: reading goes on without it. */
  #complain(error: unknown): void {
    const isExpected = error instanceof TsimgfsError;
    if (isExpected && this.#hasComplained) return;
    this.#hasComplained = true;
    const reason = isExpected || !(error instanceof Error) ? String(error) : (error.stack ?? "");
    const told = reason.split("\n").map(printable).join("\n");
    writeLine(`tsimgfs: what was read from a backing file could not be stored: ${told}`);
  }
}
