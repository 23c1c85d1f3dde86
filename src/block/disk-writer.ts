/**
 * Writing to a disk: what is common to all formats. Bytes that have their place are written under the
 * shared lock. Where tables must change, the driver plans under the exclusive lock, the new place is
 * filled without it (with what was there before, where the write does not cover it), and the driver links
 * it. If a power cut could then show less than was there before, the new place is made durable first.
 */

import assert from "node:assert";
import { TsimgfsError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";
import { MAGIC_SECTOR_SIZE } from "../formats/image-magic.ts";
import {
  ALLOCATION,
  type Allocation,
  type DirtyBitmaps,
  type FormatWriter,
  HostPlace,
  type Occupation,
} from "../formats/writer.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero, ZEROS } from "../syscalls/zeros.ts";
import { COUNTER, count } from "../threads/counters.ts";
import type { Mutex } from "../threads/mutex.ts";
import { READ_AGAIN, type UnlockedReads } from "../threads/unlocked-reads.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { DataWriter } from "./data-extents.ts";
import { DiskResizer, type GrowthPreallocation, type ResizePieces } from "./disk-resizer.ts";
import { GuardedSector } from "./guarded-sector.ts";
import { PlanFiller, SOURCE, type Source } from "./plan-filler.ts";
import type { TableChanges } from "./table-changes.ts";
import type { WritePolicy } from "./write-policy.ts";
import {
  COPIED_ZEROS,
  mannerOf,
  releasedZeros,
  type ZeroFlags,
  type ZeroManner,
} from "./zero-manner.ts";
import { ZeroRanges } from "./zero-ranges.ts";

/** Zeros are looked for in pieces of this many bytes where a format has no unit. */
const DETECT_UNIT = 4096;
/** A write of so many bytes to a new place takes no longer than to take the lock twice. */
const QUICK_FILL_MAX = 16 * 1024;
/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

/** What a writer works on, in one thread. */
export interface DiskWriterContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly data: DataWriter;
  /** Taken before the lock of the image: changes of the size go one after the other. */
  readonly resizing: Mutex;
  /** Writing data to new places, and linking them, goes one after the other. */
  readonly filling: Mutex;
  readonly changes: TableChanges;
  /** How reads give up the lock; undefined: they do not. */
  readonly unlocked: UnlockedReads | undefined;
  readonly policy: WritePolicy;
  /** No image magic may be written to the first sector. */
  readonly guardsMagic: boolean;
  /** This thread's counters of the device. */
  readonly counters: Float64Array;
}

export class DiskWriter {
  readonly #chain: BackingChain;
  readonly #image: FormatImage;
  readonly #writer: FormatWriter;
  readonly #dirtyBitmaps: DirtyBitmaps | undefined;
  readonly #data: DataWriter;
  readonly #changes: TableChanges;
  readonly #filling: Mutex;
  readonly #unlocked: UnlockedReads | undefined;
  readonly #policy: WritePolicy;
  /** Undefined: the first sector is as any other. */
  readonly #guarded: GuardedSector | undefined;
  readonly #filler: PlanFiller;
  /** How zeros are made that need no space. */
  readonly #released: ZeroManner;
  readonly #counters: Float64Array;
  readonly #zeroRanges: ZeroRanges;
  readonly #resizer: DiskResizer;
  readonly #place = new HostPlace();

  constructor(context: DiskWriterContext) {
    this.#chain = context.chain;
    this.#image = context.chain.image;
    this.#writer = context.writer;
    this.#dirtyBitmaps = context.writer.dirtyBitmaps;
    this.#data = context.data;
    this.#changes = context.changes;
    this.#filling = context.filling;
    this.#unlocked = context.unlocked;
    this.#policy = context.policy;
    this.#guarded = context.guardsMagic
      ? new GuardedSector(context.chain, context.data, context.changes)
      : undefined;
    this.#filler = new PlanFiller(context);
    this.#released = releasedZeros(context.policy.discard === "ignore");
    this.#counters = context.counters;
    this.#zeroRanges = new ZeroRanges(
      context.chain,
      context.writer,
      this.#changes,
      (guestOffset, length) => this.#writeRange(guestOffset, length, SOURCE.zeros, ZEROS, 0),
    );
    this.#resizer = new DiskResizer({
      ...context,
      zero: (guestOffset, length) => {
        this.#zeroRanges.zero(guestOffset, length, this.#released);
      },
      occupy: (guestOffset, length, how) => this.#occupy(guestOffset, length, how),
    });
  }

  /** As Disk.write. */
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    this.#writer.begin("contents");
    this.#dirtyBitmaps?.mark(guestOffset, length);
    if (this.#guarded !== undefined && guestOffset < MAGIC_SECTOR_SIZE) {
      const count = Math.min(length, MAGIC_SECTOR_SIZE - guestOffset);
      this.#guarded.write(guestOffset, count, source, start);
      if (count < length) {
        this.write(guestOffset + count, length - count, source, start + count);
      }
      return;
    }
    if (this.#policy.detectZeroes === "off") {
      this.#writeRange(guestOffset, length, SOURCE.buffer, source, start);
      return;
    }
    const unit = this.#writer.unit === 1 ? DETECT_UNIT : this.#writer.unit;
    let runStart = 0;
    let runIsZero = false;
    let done = 0;
    while (done < length) {
      const count = Math.min(unit - ((guestOffset + done) % unit), length - done);
      const zero = isZero(source, start + done, count);
      if (zero !== runIsZero) {
        this.#writeRun(guestOffset, runStart, done, runIsZero, source, start);
        runStart = done;
        runIsZero = zero;
      }
      done += count;
    }
    this.#writeRun(guestOffset, runStart, done, runIsZero, source, start);
  }

  #writeRun(
    guestOffset: number,
    from: number,
    to: number,
    zero: boolean,
    source: NativeBuffer,
    start: number,
  ): void {
    if (from === to) return;
    if (zero) this.#writeDetected(guestOffset + from, to - from);
    else this.#writeRange(guestOffset + from, to - from, SOURCE.buffer, source, start + from);
  }

  /** Write zeros that somebody has written as data. */
  #writeDetected(guestOffset: number, length: number): void {
    this.#zeroRanges.zero(guestOffset, length, this.#released);
    const saved = length - this.#zeroRanges.written;
    const clusters = Math.ceil(saved / this.#writer.clusterSize);
    count(this.#counters, COUNTER.zeroClustersDetected, clusters);
    count(this.#counters, COUNTER.zeroBytesDetected, saved);
  }

  /** As Disk.writeZeroes. */
  writeZeroes(guestOffset: number, length: number, flags: ZeroFlags): void {
    this.#writer.begin("contents");
    this.#dirtyBitmaps?.mark(guestOffset, length);
    let guarded = 0;
    if (this.#guarded !== undefined && guestOffset < MAGIC_SECTOR_SIZE) {
      guarded = Math.min(length, MAGIC_SECTOR_SIZE - guestOffset);
      this.#guarded.write(guestOffset, guarded, ZEROS, 0);
    }
    const manner = mannerOf(flags, this.#policy.discard === "ignore");
    const done = this.#zeroRanges.zero(guestOffset + guarded, length - guarded, manner);
    if (guarded + done < length) {
      const reason = "zeros must be written there, which was ruled out";
      throw new TsimgfsError("ENOTSUP", this.#image.storage.path, reason);
    }
  }

  /**
   * Let the image itself say that a range that it lacks reads as zeros, as the backing file does. The
   * range is claimed.
   *
   * @returns the bytes done; less than `length` where tables cannot say that
   */
  copyZeros(guestOffset: number, length: number): number {
    return this.#zeroRanges.zero(guestOffset, length, COPIED_ZEROS);
  }

  /** As Disk.preallocate. */
  preallocate(guestOffset: number, length: number, how: Occupation): void {
    this.#writer.begin(how === "metadata" ? "places" : "contents");
    this.#occupy(guestOffset, length, how);
  }

  #occupy(guestOffset: number, length: number, how: Occupation): void {
    let done = 0;
    for (let turns = 0; done < length; turns++) {
      assert(turns < TURNS_MAX, "an allocation comes to no end");
      const offset = guestOffset + done;
      let count = this.#occupyInPlace(offset, length - done, how);
      if (count === 0) {
        count = this.#writeByTables(offset, length - done, SOURCE.nothing, ZEROS, 0);
        if (count > 0) this.#occupyInPlace(offset, count, how);
      }
      done += count;
    }
  }

  /** As Disk.resizeInPieces. */
  resize(size: number, preallocation: GrowthPreallocation): ResizePieces {
    return this.#resizer.resize(size, preallocation);
  }

  #occupyInPlace(guestOffset: number, length: number, how: Occupation): number {
    this.#changes.lockShared();
    try {
      if (this.#isCutOff(guestOffset)) return length;
      const count = this.#writer.mapInPlace(guestOffset, length, this.#place);
      const { hostOffset } = this.#place;
      if (count > 0 && how === "falloc") this.#data.preallocate(hostOffset, count);
      else if (count > 0 && how === "full") this.#data.fillZeros(count, hostOffset, guestOffset);
      return count;
    } finally {
      this.#changes.unlockShared();
    }
  }

  /** Write a range that is not looked at any more. */
  #writeRange(
    guestOffset: number,
    length: number,
    kind: Source,
    source: NativeBuffer,
    start: number,
  ): void {
    let done = 0;
    for (let turns = 0; done < length; turns++) {
      assert(turns < TURNS_MAX, "a write comes to no end");
      const offset = guestOffset + done;
      let count = this.#writeInPlace(offset, length - done, kind, source, start + done);
      if (count === 0) {
        count = this.#writeByTables(offset, length - done, kind, source, start + done);
      }
      done += count;
    }
  }

  #writeInPlace(
    guestOffset: number,
    length: number,
    kind: Source,
    source: NativeBuffer,
    start: number,
  ): number {
    const touchesMore = this.#data.touchesMore(guestOffset, length);
    if (touchesMore) this.#changes.lockExclusive();
    else this.#changes.lockShared();
    try {
      if (this.#isCutOff(guestOffset)) return length;
      const count = touchesMore
        ? this.#writer.mapInPlace(guestOffset, length, this.#place)
        : this.#changes.reads.mapInPlace(this.#writer, guestOffset, length, this.#place);
      if (count > 0) {
        const { hostOffset } = this.#place;
        this.#filler.put(kind, source, start, count, hostOffset, guestOffset);
      }
      return count;
    } finally {
      if (touchesMore) this.#changes.unlockExclusive();
      else this.#changes.unlockShared();
    }
  }

  /**
   * Write the start of a range for which tables must change.
   *
   * @returns bytes done; 0: what was in the way is gone, look again
   */
  #writeByTables(
    guestOffset: number,
    length: number,
    kind: Source,
    source: NativeBuffer,
    start: number,
  ): number {
    const { plan } = this.#changes;
    let need: Allocation;
    let isFilled = false;
    this.#changes.lockExclusive();
    try {
      if (this.#isCutOff(guestOffset)) return length;
      if (this.#changes.isBusy(guestOffset, guestOffset + length)) need = ALLOCATION.inPlace;
      else need = this.#writer.allocate(guestOffset, length, plan);
      if (need === ALLOCATION.planned) {
        this.#filler.cover(guestOffset, length);
        isFilled = this.#isQuick();
        if (isFilled && !this.#fillLocked(guestOffset, kind, source, start)) {
          this.#writer.link(plan);
          return this.#filler.covered;
        }
      }
      if (need === ALLOCATION.planned || need === ALLOCATION.copiedTable) this.#changes.claimPlan();
    } finally {
      this.#changes.unlockExclusive();
    }
    if (need === ALLOCATION.planned && !isFilled) {
      this.#fillClaimed(guestOffset, kind, source, start);
    } else this.#changes.provide(need);
    return need === ALLOCATION.planned ? this.#filler.covered : 0;
  }

  /** Another thread has just made the disk smaller: what is written past its end is lost. Under the lock. */
  #isCutOff(guestOffset: number): boolean {
    return guestOffset >= this.#chain.virtualSize;
  }

  /** Whether filling the plan takes no longer than to give up the lock and take it again. */
  #isQuick(): boolean {
    const { fresh } = this.#changes.plan;
    const mayBeZeros = fresh && !this.#data.isEncrypted && this.#chain.images.length === 1;
    return mayBeZeros && this.#filler.covered <= QUICK_FILL_MAX;
  }

  /** Fill the plan under the exclusive lock. Returns whether it must be durable before it is linked. */
  #fillLocked(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    try {
      const mustBeDurable = this.#filler.prepare(guestOffset, kind, source, start);
      this.#filler.write();
      return mustBeDurable;
    } catch (error) {
      this.#writer.abandon(this.#changes.plan);
      throw error;
    }
  }

  /** Fill what is planned and claimed while others use the disk, then link it. Without the lock. */
  #fillClaimed(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    if (this.#prepareClaimed(guestOffset, kind, source, start)) {
      this.#writeClaimed();
      this.#changes.provide(ALLOCATION.planned);
      return;
    }
    // The host lets threads write to a file one by one: a table would wait behind the data of the next one.
    if (this.#policy.ownProcessors === true) this.#filling.lockActively();
    else this.#filling.lock();
    try {
      this.#writeClaimed();
      this.#changes.linkClaimed();
    } finally {
      this.#filling.unlock();
    }
  }

  /** As PlanFiller.prepare, of what is claimed. */
  #prepareClaimed(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    try {
      return this.#prepareShared(guestOffset, kind, source, start);
    } catch (error) {
      this.#changes.abandonClaimed();
      throw error;
    }
  }

  /** As PlanFiller.write, of what is claimed: however long it takes, who reads or changes other clusters goes on. */
  #writeClaimed(): void {
    try {
      this.#filler.write();
    } catch (error) {
      this.#changes.abandonClaimed();
      throw error;
    }
  }

  /** As PlanFiller.prepare, under the shared lock, which is given up while old data is read. */
  #prepareShared(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    for (let attempt = 0; ; attempt++) {
      this.#changes.lockShared();
      if (attempt === 0) this.#unlocked?.begin();
      try {
        return this.#filler.prepare(guestOffset, kind, source, start);
      } catch (error) {
        if (error !== READ_AGAIN) throw error;
      } finally {
        this.#unlocked?.end();
        this.#changes.unlockShared();
      }
    }
  }
}
