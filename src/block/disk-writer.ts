/**
 * Writing to a disk: what is common to all formats. Bytes that have their place are written under the
 * shared lock. Where tables must change, the driver plans under the exclusive lock, the new place is
 * filled (with what was there before, where the write does not cover it), and the driver links it. If a
 * power cut could then show less than was there before, the new place is made durable first, and the
 * lock is not held meanwhile.
 */

import assert from "node:assert";
import { TsimgfsError } from "../errors.ts";
import { type FormatImage, NO_OFFSET } from "../formats/driver.ts";
import { MAGIC_SECTOR_SIZE, magicOf } from "../formats/image-magic.ts";
import {
  ALLOCATION,
  type Allocation,
  type FormatWriter,
  HostPlace,
  WritePlan,
  ZeroProgress,
  type ZeroSpace,
} from "../formats/writer.ts";
import type { HostRun, WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero, ZEROS, ZEROS_SIZE } from "../syscalls/zeros.ts";
import type { AccessLock } from "../threads/access-lock.ts";
import type { BusyRanges } from "../threads/busy-ranges.ts";
import type { BackingChain } from "./backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "./block-status.ts";
import type { WritePolicy } from "./write-policy.ts";

/** Zeros are looked for in pieces of this many bytes where a format has no unit. */
const DETECT_UNIT = 4096;
/** Zeros from this many bytes on are no bytes that are written, but a hole. */
const HOLE_MIN = 64 * 1024;
/** Bytes at both ends of a cluster that are looked at first for anything but zeros. */
const PEEK_SIZE = 4096;
/** Sizes of disks are multiples of this, bytes. */
const SECTOR_SIZE = 512;
/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

/** What is written where a plan is filled. */
const SOURCE = { buffer: 0, zeros: 1, nothing: 2 } as const;
type Source = (typeof SOURCE)[keyof typeof SOURCE];

/** What a writer works on: the lock and the busy ranges are those of the image, shared by all threads. */
export interface DiskWriterContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly dataStorage: WritableStorage;
  readonly lock: AccessLock;
  readonly busy: BusyRanges;
  readonly policy: WritePolicy;
  /** No image magic may be written to the first sector. */
  readonly guardsMagic: boolean;
}

export class DiskWriter {
  readonly #chain: BackingChain;
  readonly #image: FormatImage;
  readonly #writer: FormatWriter;
  readonly #dataStorage: WritableStorage;
  readonly #lock: AccessLock;
  readonly #busy: BusyRanges;
  readonly #policy: WritePolicy;
  readonly #guardsMagic: boolean;
  readonly #walker: BlockStatusWalker;
  readonly #status = new BlockStatus();
  readonly #hostRun: HostRun = { isData: true, length: 0 };
  readonly #plan = new WritePlan();
  readonly #place = new HostPlace();
  readonly #zeroProgress = new ZeroProgress();
  /** A cluster: head, data and tail of a small write, and what surrounds zeros. */
  #scratch: NativeBuffer | undefined;
  /** The slot of another thread whose change must end first, and how often it had ended one. */
  #waitSlot = -1;
  #waitReleases = 0;
  /** Bytes of the write that the plan covers. */
  #planned = 0;

  constructor(context: DiskWriterContext) {
    this.#chain = context.chain;
    this.#image = context.chain.image;
    this.#writer = context.writer;
    this.#dataStorage = context.dataStorage;
    this.#lock = context.lock;
    this.#busy = context.busy;
    this.#policy = context.policy;
    this.#guardsMagic = context.guardsMagic;
    this.#walker = new BlockStatusWalker(context.chain);
  }

  /** As Disk.write. */
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    this.#writer.begin();
    if (this.#guardsMagic && guestOffset < MAGIC_SECTOR_SIZE) {
      const count = Math.min(length, MAGIC_SECTOR_SIZE - guestOffset);
      this.#writeGuarded(guestOffset, count, source, start);
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

  /**
   * Write to the first sector of a disk whose format was guessed: a guest must not turn it into an image,
   * which the next one who guesses would open with all that it refers to.
   */
  #writeGuarded(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    const sector = this.#scratchBuffer();
    const count = Math.min(MAGIC_SECTOR_SIZE, this.#image.virtualSize);
    this.#lock.lockExclusive();
    try {
      this.#chain.read(0, count, sector, 0);
      sector.bytes.set(source.bytes.subarray(start, start + length), guestOffset);
      const magic = magicOf(sector.bytes.subarray(0, count));
      if (magic !== undefined) {
        const reason = `a write would make it look like a ${magic} image; state --format raw to allow that`;
        throw new TsimgfsError("EPERM", this.#image.storage.path, reason);
      }
      this.#dataStorage.writeAt(source, start, length, guestOffset);
    } finally {
      this.#lock.unlockExclusive();
    }
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
    if (zero) this.#writeZeroes(guestOffset + from, to - from, this.#releasedSpace());
    else this.#writeRange(guestOffset + from, to - from, SOURCE.buffer, source, start + from);
  }

  /** As Disk.writeZeroes. */
  writeZeroes(guestOffset: number, length: number, unmap: boolean): void {
    this.#writer.begin();
    this.#writeZeroes(guestOffset, length, unmap ? this.#releasedSpace() : "keep");
  }

  /** As Disk.preallocate. */
  preallocate(guestOffset: number, length: number): void {
    this.#writer.begin();
    let done = 0;
    for (let turns = 0; done < length; turns++) {
      assert(turns < TURNS_MAX, "an allocation comes to no end");
      const offset = guestOffset + done;
      let count = this.#preallocateInPlace(offset, length - done);
      if (count === 0) {
        count = this.#writeByTables(offset, length - done, SOURCE.nothing, ZEROS, 0);
        if (count > 0) this.#preallocateInPlace(offset, count);
      }
      done += count;
    }
  }

  /** As Disk.resize. */
  resize(size: number): void {
    const rounded = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
    if (!Number.isSafeInteger(rounded)) {
      throw new TsimgfsError("EFBIG", this.#image.storage.path, `a size of ${size} is too large`);
    }
    this.#writer.begin();
    this.#lock.resizing.lock();
    try {
      this.#lock.lockShared();
      this.#writer.refresh(this.#lock.generation);
      const old = this.#image.virtualSize;
      this.#lock.unlockShared();
      if (rounded > old) this.#grow(old, rounded);
      else if (rounded < old) {
        // What is cut off must not come back when the disk grows again.
        this.#writeZeroes(rounded, old - rounded, this.#releasedSpace());
        this.#writer.flush();
        this.#writer.setVirtualSize(rounded);
      }
    } finally {
      this.#lock.resizing.unlock();
    }
  }

  #grow(old: number, size: number): void {
    this.#claimAll();
    try {
      this.#writer.growTables(size);
    } finally {
      this.#lock.lockExclusive();
      this.#busy.release();
      this.#lock.unlockExclusive();
    }
    // What the last cluster and a longer backing file have past the old end would become visible.
    const { clusterSize } = this.#writer;
    const clusterEnd = Math.ceil(old / clusterSize) * clusterSize;
    const hidden = Math.max(clusterEnd, this.#chain.images[1]?.virtualSize ?? 0);
    this.#writer.pretendSize(size);
    try {
      const end = Math.min(hidden, size);
      if (end > old) this.#writeZeroes(old, end - old, this.#releasedSpace());
      this.#writer.flush();
      this.#writer.setVirtualSize(size);
    } finally {
      this.#writer.pretendSize(undefined);
    }
  }

  /** Keep all other threads from changing tables. */
  #claimAll(): void {
    for (;;) {
      this.#lock.lockExclusive();
      const isBusy = this.#isBusy(0, Number.MAX_SAFE_INTEGER);
      if (!isBusy) this.#busy.claim(0, Number.MAX_SAFE_INTEGER);
      this.#lock.unlockExclusive();
      if (!isBusy) return;
      this.#busy.waitForRelease(this.#waitSlot, this.#waitReleases);
    }
  }

  #preallocateInPlace(guestOffset: number, length: number): number {
    this.#lock.lockShared();
    try {
      this.#writer.refresh(this.#lock.generation);
      const count = this.#writer.mapInPlace(guestOffset, length, this.#place);
      if (count > 0) this.#dataStorage.preallocate(this.#place.hostOffset, count);
      return count;
    } finally {
      this.#lock.unlockShared();
    }
  }

  #releasedSpace(): ZeroSpace {
    return this.#policy.discard === "unmap" ? "release" : "keep";
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
    this.#lock.lockShared();
    try {
      this.#writer.refresh(this.#lock.generation);
      const count = this.#writer.mapInPlace(guestOffset, length, this.#place);
      if (count > 0) this.#put(kind, source, start, count, this.#place.hostOffset);
      return count;
    } finally {
      this.#lock.unlockShared();
    }
  }

  /** Write bytes, or zeros, to a place on the host. */
  #put(
    kind: Source,
    source: NativeBuffer,
    start: number,
    length: number,
    hostOffset: number,
  ): void {
    if (kind === SOURCE.buffer) this.#dataStorage.writeAt(source, start, length, hostOffset);
    else this.#putZeros(length, hostOffset);
  }

  #putZeros(length: number, hostOffset: number): void {
    if (length >= HOLE_MIN) {
      this.#dataStorage.zeroAt(hostOffset, length, this.#releasedSpace());
      return;
    }
    for (let done = 0; done < length; done += ZEROS_SIZE) {
      const count = Math.min(length - done, ZEROS_SIZE);
      this.#dataStorage.writeAt(ZEROS, 0, count, hostOffset + done);
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
    const plan = this.#plan;
    let need: Allocation;
    this.#lock.lockExclusive();
    try {
      this.#writer.refresh(this.#lock.generation);
      if (this.#isBusy(guestOffset, guestOffset + length)) need = ALLOCATION.inPlace;
      else need = this.#writer.allocate(guestOffset, length, plan);
      if (need === ALLOCATION.planned) {
        this.#planned = Math.min(guestOffset + length, plan.coverEnd) - guestOffset;
        if (!this.#fill(guestOffset, kind, source, start)) {
          this.#writer.link(plan);
          return this.#planned;
        }
        this.#busy.claim(plan.coverStart, plan.coverEnd);
      } else if (need === ALLOCATION.copiedTable) {
        this.#busy.claim(plan.coverStart, plan.coverEnd);
      }
    } finally {
      this.#lock.unlockExclusive();
    }
    this.#provide(need);
    return need === ALLOCATION.planned ? this.#planned : 0;
  }

  /** Do what a change of tables needs first, without the lock. */
  #provide(need: Allocation): void {
    switch (need) {
      case ALLOCATION.planned:
      case ALLOCATION.copiedTable:
        this.#linkDurably();
        break;
      case ALLOCATION.needsReservation:
        this.#writer.reserve();
        break;
      case ALLOCATION.needsBarrier:
        this.#writer.flush();
        this.#writer.maintain();
        break;
      case ALLOCATION.inPlace:
        if (this.#waitSlot >= 0) this.#busy.waitForRelease(this.#waitSlot, this.#waitReleases);
        break;
    }
  }

  /** What the plan covers, and this thread has claimed, is linked when it is durable. */
  #linkDurably(): void {
    let durable = false;
    try {
      this.#writer.flush();
      durable = true;
    } finally {
      this.#lock.lockExclusive();
      try {
        this.#writer.refresh(this.#lock.generation);
        if (durable) this.#writer.link(this.#plan);
        else this.#writer.abandon(this.#plan);
      } finally {
        this.#busy.release();
        this.#lock.unlockExclusive();
      }
    }
  }

  /** Whether another thread is about to change the clusters of a range; notes which. */
  #isBusy(start: number, end: number): boolean {
    const size = this.#writer.clusterSize;
    const first = start - (start % size);
    this.#waitSlot = this.#busy.findOverlap(first, Math.ceil(end / size) * size);
    if (this.#waitSlot < 0) return false;
    this.#waitReleases = this.#busy.releasesOf(this.#waitSlot);
    return true;
  }

  /**
   * Fill what the plan covers.
   *
   * @returns whether it must be durable before anything refers to it
   * @throws {StorageError} the plan is given up
   */
  #fill(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    const plan = this.#plan;
    try {
      if (!this.#readsAsZero(plan.coverStart, plan.coverEnd)) {
        this.#fillAround(guestOffset, kind, source, start);
        return true;
      }
      // A place that is a hole is as good as a new one.
      const isBlank = plan.fresh || this.#isHole(plan.hostOffset, plan.coverEnd - plan.coverStart);
      const data = plan.hostOffset + guestOffset - plan.coverStart;
      const count = kind === SOURCE.nothing ? 0 : this.#planned;
      if (!isBlank) {
        this.#putZeros(guestOffset - plan.coverStart, plan.hostOffset);
        this.#putZeros(plan.coverEnd - guestOffset - count, data + count);
      }
      if (kind === SOURCE.buffer) this.#dataStorage.writeAt(source, start, count, data);
      else if (!isBlank) this.#putZeros(count, data);
      return !isBlank;
    } catch (error) {
      this.#writer.abandon(plan);
      throw error;
    }
  }

  /** Fill a place with a write and what was around it before. */
  #fillAround(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    const { coverStart, coverEnd, hostOffset } = this.#plan;
    const count = kind === SOURCE.nothing ? 0 : this.#planned;
    const head = guestOffset - coverStart;
    const total = coverEnd - coverStart;
    const size = this.#writer.clusterSize;
    if (total <= size && kind === SOURCE.buffer) {
      // One write for all.
      const scratch = this.#scratchBuffer();
      this.#chain.read(coverStart, head, scratch, 0);
      scratch.bytes.set(source.bytes.subarray(start, start + count), head);
      this.#chain.read(guestOffset + count, total - head - count, scratch, head + count);
      this.#dataStorage.writeAt(scratch, 0, total, hostOffset);
      return;
    }
    this.#copyOld(coverStart, head, hostOffset);
    if (count > 0) this.#put(kind, source, start, count, hostOffset + head);
    this.#copyOld(guestOffset + count, total - head - count, hostOffset + head + count);
  }

  /** Copy what the disk shows now to a place on the host. */
  #copyOld(guestOffset: number, length: number, hostOffset: number): void {
    const scratch = this.#scratchBuffer();
    for (let done = 0; done < length; done += scratch.length) {
      const count = Math.min(scratch.length, length - done);
      this.#chain.read(guestOffset + done, count, scratch, 0);
      this.#dataStorage.writeAt(scratch, 0, count, hostOffset + done);
    }
  }

  #scratchBuffer(): NativeBuffer {
    this.#scratch ??= NativeBuffer.allocate(Math.max(this.#writer.clusterSize, PEEK_SIZE));
    return this.#scratch;
  }

  /** Whether the tables alone say that a range reads as zeros. */
  #readsAsZero(start: number, end: number): boolean {
    const status = this.#status;
    const last = Math.min(end, this.#image.virtualSize);
    for (let offset = start; offset < last; offset += status.length) {
      this.#walker.statusAt(offset, last - offset, status);
      if (!status.zero) return false;
    }
    return true;
  }

  #isHole(hostOffset: number, length: number): boolean {
    this.#dataStorage.hostRun(hostOffset, this.#hostRun);
    return !this.#hostRun.isData && this.#hostRun.length >= length;
  }

  #writeZeroes(guestOffset: number, length: number, space: ZeroSpace): void {
    const { unit } = this.#writer;
    const { virtualSize } = this.#image;
    const end = guestOffset + length;
    let offset = guestOffset;
    for (let turns = 0; offset < end; turns++) {
      assert(turns < TURNS_MAX, "zeroing comes to no end");
      const unitStart = offset - (offset % unit);
      const unitEnd = Math.min(unitStart + unit, virtualSize);
      if (offset > unitStart || end < unitEnd) {
        offset += this.#zeroPart(
          offset,
          Math.min(end, unitEnd) - offset,
          unitStart,
          unitEnd,
          space,
        );
      } else {
        const wholeEnd = end >= virtualSize ? virtualSize : end - (end % unit);
        offset += this.#zeroWhole(offset, wholeEnd - offset, space);
      }
    }
  }

  /** Zero whole units, as many as one change of tables does. Returns the bytes done. */
  #zeroWhole(guestOffset: number, length: number, space: ZeroSpace): number {
    const progress = this.#zeroProgress;
    this.#lock.lockExclusive();
    try {
      this.#writer.refresh(this.#lock.generation);
      const zero = this.#zeroThere(guestOffset, length, space);
      if (zero > 0) return zero;
      this.#zeroByTables(guestOffset, length, space);
    } finally {
      this.#lock.unlockExclusive();
    }
    return this.#finishZero(guestOffset, progress.done);
  }

  /**
   * Zero a part of a unit: as a whole, if the rest of it reads as zeros, else by writing. Nobody may write
   * to the rest between the look and the change.
   */
  #zeroPart(
    guestOffset: number,
    length: number,
    unitStart: number,
    unitEnd: number,
    space: ZeroSpace,
  ): number {
    const progress = this.#zeroProgress;
    const end = guestOffset + length;
    this.#lock.lockExclusive();
    try {
      this.#writer.refresh(this.#lock.generation);
      if (this.#isZeroWithoutPlace(guestOffset, end)) return length;
      if (this.#restIsZero(unitStart, guestOffset, end, unitEnd)) {
        this.#zeroByTables(unitStart, unitEnd - unitStart, space);
      } else {
        progress.need = ALLOCATION.inPlace;
        progress.mustWrite = true;
        progress.done = length;
        this.#waitSlot = -1;
      }
    } finally {
      this.#lock.unlockExclusive();
    }
    const done = progress.mustWrite ? length : progress.done;
    return Math.min(this.#finishZero(guestOffset, done), length);
  }

  #zeroByTables(guestOffset: number, length: number, space: ZeroSpace): void {
    const progress = this.#zeroProgress;
    const plan = this.#plan;
    if (this.#isBusy(guestOffset, guestOffset + length)) {
      progress.need = ALLOCATION.inPlace;
      progress.mustWrite = false;
      progress.done = 0;
      return;
    }
    const backing = this.#chain.images[1];
    const backed = backing === undefined ? 0 : Math.max(0, backing.virtualSize - guestOffset);
    this.#writer.zero(guestOffset, length, space, backed, plan, progress);
    if (progress.need === ALLOCATION.copiedTable) {
      this.#busy.claim(plan.coverStart, plan.coverEnd);
    }
  }

  /** After the lock: what a change of tables needs, or the writing that it cannot replace. */
  #finishZero(guestOffset: number, done: number): number {
    const { need, mustWrite } = this.#zeroProgress;
    if (mustWrite) {
      this.#writeRange(guestOffset, done, SOURCE.zeros, ZEROS, 0);
      return done;
    }
    if (done === 0) this.#provide(need);
    return done;
  }

  /** Bytes from `guestOffset` on for which there is nothing to do. */
  #zeroThere(guestOffset: number, length: number, space: ZeroSpace): number {
    const status = this.#status;
    this.#walker.statusAt(guestOffset, length, status);
    if (!status.zero || status.data) return 0;
    if (space === "release" && status.depth === 0 && status.hostOffset !== NO_OFFSET) return 0;
    const { unit } = this.#writer;
    // What follows a part of a unit may be anything.
    return status.length >= length ? length : status.length - (status.length % unit);
  }

  /** Whether a range reads as zeros, and has no data on the host. */
  #isZeroWithoutPlace(start: number, end: number): boolean {
    const status = this.#status;
    for (let offset = start; offset < end; offset += status.length) {
      this.#walker.statusAt(offset, end - offset, status);
      if (!status.zero || status.data) return false;
    }
    return true;
  }

  /** Whether a unit but for a part of it reads as zeros: its ends, which tell most, come first. */
  #restIsZero(unitStart: number, start: number, end: number, unitEnd: number): boolean {
    return (
      this.#contentIsZero(Math.max(end, unitEnd - PEEK_SIZE), unitEnd) &&
      this.#contentIsZero(unitStart, Math.min(start, unitStart + PEEK_SIZE)) &&
      this.#contentIsZero(end, unitEnd) &&
      this.#contentIsZero(unitStart, start)
    );
  }

  #contentIsZero(start: number, end: number): boolean {
    const status = this.#status;
    const scratch = this.#scratchBuffer();
    for (let offset = start; offset < end; ) {
      this.#walker.statusAt(offset, end - offset, status);
      const count = Math.min(status.length, scratch.length);
      if (!status.zero) {
        this.#chain.read(offset, count, scratch, 0);
        if (!isZero(scratch, 0, count)) return false;
      }
      offset += count;
    }
    return true;
  }
}
