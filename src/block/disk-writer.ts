/**
 * Writing to a disk: what is common to all formats. Bytes that have their place are written under the
 * shared lock. Where tables must change, the driver plans under the exclusive lock, the new place is
 * filled (with what was there before, where the write does not cover it), and the driver links it. If a
 * power cut could then show less than was there before, the new place is made durable first, and the
 * lock is not held meanwhile.
 */

import assert from "node:assert";
import { TsimgfsError } from "../errors.ts";
import type { FormatImage } from "../formats/driver.ts";
import { MAGIC_SECTOR_SIZE, magicOf } from "../formats/image-magic.ts";
import {
  ALLOCATION,
  type Allocation,
  type FormatWriter,
  HostPlace,
  type Occupation,
} from "../formats/writer.ts";
import type { WritableStorage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";
import { isZero, ZEROS, ZEROS_SIZE } from "../syscalls/zeros.ts";
import type { Mutex } from "../threads/mutex.ts";
import type { BackingChain } from "./backing-chain.ts";
import { DiskResizer, type GrowthPreallocation } from "./disk-resizer.ts";
import type { TableChanges } from "./table-changes.ts";
import type { WritePolicy } from "./write-policy.ts";
import { ZeroLookup } from "./zero-lookup.ts";
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
/** Zeros from this many bytes on are no bytes that are written, but a hole. */
const HOLE_MIN = 64 * 1024;
/** A write of so many bytes to a new place takes no longer than to take the lock twice. */
const QUICK_FILL_MAX = 16 * 1024;
/** Bytes of scratch memory at least. */
const SCRATCH_MIN = 4096;
/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

/** What is written where a plan is filled. */
const SOURCE = { buffer: 0, zeros: 1, nothing: 2 } as const;
type Source = (typeof SOURCE)[keyof typeof SOURCE];

/** What a writer works on, in one thread. */
export interface DiskWriterContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly dataStorage: WritableStorage;
  /** Taken before the lock of the image: changes of the size go one after the other. */
  readonly resizing: Mutex;
  readonly changes: TableChanges;
  readonly policy: WritePolicy;
  /** No image magic may be written to the first sector. */
  readonly guardsMagic: boolean;
}

export class DiskWriter {
  readonly #chain: BackingChain;
  readonly #image: FormatImage;
  readonly #writer: FormatWriter;
  readonly #dataStorage: WritableStorage;
  readonly #changes: TableChanges;
  readonly #policy: WritePolicy;
  readonly #guardsMagic: boolean;
  readonly #zeros: ZeroLookup;
  readonly #zeroRanges: ZeroRanges;
  readonly #resizer: DiskResizer;
  readonly #place = new HostPlace();
  /** A cluster: head, data and tail of a small write, and what surrounds zeros. */
  #scratch: NativeBuffer | undefined;
  /** Bytes of the write that the plan covers. */
  #planned = 0;

  constructor(context: DiskWriterContext) {
    this.#chain = context.chain;
    this.#image = context.chain.image;
    this.#writer = context.writer;
    this.#dataStorage = context.dataStorage;
    this.#changes = context.changes;
    this.#policy = context.policy;
    this.#guardsMagic = context.guardsMagic;
    this.#zeros = new ZeroLookup(context.chain);
    this.#zeroRanges = new ZeroRanges(
      context.chain,
      context.writer,
      this.#changes,
      (guestOffset, length) => this.#writeRange(guestOffset, length, SOURCE.zeros, ZEROS, 0),
    );
    this.#resizer = new DiskResizer({
      ...context,
      zero: (guestOffset, length) => {
        this.#zeroRanges.zero(guestOffset, length, this.#released());
      },
      occupy: (guestOffset, length, how) => this.#occupy(guestOffset, length, how),
    });
  }

  /** As Disk.write. */
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void {
    this.#writer.begin("contents");
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
    this.#changes.lockExclusive();
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
      this.#changes.unlockExclusive();
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
    if (zero) this.#zeroRanges.zero(guestOffset + from, to - from, this.#released());
    else this.#writeRange(guestOffset + from, to - from, SOURCE.buffer, source, start + from);
  }

  /** As Disk.writeZeroes. */
  writeZeroes(guestOffset: number, length: number, flags: ZeroFlags): void {
    this.#writer.begin("contents");
    let guarded = 0;
    if (this.#guardsMagic && guestOffset < MAGIC_SECTOR_SIZE) {
      guarded = Math.min(length, MAGIC_SECTOR_SIZE - guestOffset);
      this.#writeGuarded(guestOffset, guarded, ZEROS, 0);
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

  /** As Disk.resize. */
  resize(size: number, preallocation: GrowthPreallocation): void {
    this.#resizer.resize(size, preallocation);
  }

  #occupyInPlace(guestOffset: number, length: number, how: Occupation): number {
    this.#changes.lockShared();
    try {
      const count = this.#writer.mapInPlace(guestOffset, length, this.#place);
      if (count > 0 && how === "falloc") {
        this.#dataStorage.preallocate(this.#place.hostOffset, count);
      } else if (count > 0 && how === "full") this.#fillZeros(count, this.#place.hostOffset);
      return count;
    } finally {
      this.#changes.unlockShared();
    }
  }

  #released(): ZeroManner {
    return releasedZeros(this.#policy.discard === "ignore");
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
    this.#changes.lockShared();
    try {
      const count = this.#writer.mapInPlace(guestOffset, length, this.#place);
      if (count > 0) this.#put(kind, source, start, count, this.#place.hostOffset);
      return count;
    } finally {
      this.#changes.unlockShared();
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
      this.#dataStorage.zeroAt(hostOffset, length, this.#released().space);
    } else this.#fillZeros(length, hostOffset);
  }

  /** Write zeros as bytes. */
  #fillZeros(length: number, hostOffset: number): void {
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
    const { plan } = this.#changes;
    let need: Allocation;
    let isFilled = false;
    this.#changes.lockExclusive();
    try {
      if (this.#changes.isBusy(guestOffset, guestOffset + length)) need = ALLOCATION.inPlace;
      else need = this.#writer.allocate(guestOffset, length, plan);
      if (need === ALLOCATION.planned) {
        this.#planned = Math.min(guestOffset + length, plan.coverEnd) - guestOffset;
        isFilled = this.#isQuick();
        if (isFilled && !this.#fillLocked(guestOffset, kind, source, start)) {
          this.#writer.link(plan);
          return this.#planned;
        }
      }
      if (need === ALLOCATION.planned || need === ALLOCATION.copiedTable) this.#changes.claimPlan();
    } finally {
      this.#changes.unlockExclusive();
    }
    if (need === ALLOCATION.planned && !isFilled) {
      this.#fillClaimed(guestOffset, kind, source, start);
    } else this.#changes.provide(need);
    return need === ALLOCATION.planned ? this.#planned : 0;
  }

  /** Whether filling the plan takes no longer than to give up the lock and take it again. */
  #isQuick(): boolean {
    const { fresh } = this.#changes.plan;
    return fresh && this.#chain.images.length === 1 && this.#planned <= QUICK_FILL_MAX;
  }

  /** As `#fill`, under the exclusive lock. */
  #fillLocked(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    try {
      return this.#fill(guestOffset, kind, source, start);
    } catch (error) {
      this.#writer.abandon(this.#changes.plan);
      throw error;
    }
  }

  /** Fill what is planned and claimed while others use the disk, then link it. Without the lock. */
  #fillClaimed(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    let mustBeDurable: boolean;
    try {
      this.#changes.lockShared();
      try {
        mustBeDurable = this.#fill(guestOffset, kind, source, start);
      } finally {
        this.#changes.unlockShared();
      }
    } catch (error) {
      this.#changes.abandonClaimed();
      throw error;
    }
    if (mustBeDurable) this.#changes.provide(ALLOCATION.planned);
    else this.#changes.linkClaimed();
  }

  /**
   * Fill what the plan covers.
   *
   * @returns whether it must be durable before anything refers to it
   * @throws {CorruptionError | StorageError} the plan is to be given up
   */
  #fill(guestOffset: number, kind: Source, source: NativeBuffer, start: number): boolean {
    const { plan } = this.#changes;
    if (!this.#zeros.readsAsZero(plan.coverStart, plan.coverEnd)) {
      this.#fillAround(guestOffset, kind, source, start);
      return true;
    }
    // A place that is a hole is as good as a new one.
    const total = plan.coverEnd - plan.coverStart;
    if (!plan.fresh && !this.#dataStorage.isHole(plan.hostOffset, total)) {
      this.#fillPlace(guestOffset, kind, source, start);
      return true;
    }
    if (kind === SOURCE.buffer) {
      const data = plan.hostOffset + guestOffset - plan.coverStart;
      this.#dataStorage.writeAt(source, start, this.#planned, data);
    }
    return false;
  }

  /**
   * Fill a place of zeros that holds other bytes, of one cluster, with a write and the zeros around it. In
   * one write: what says that it reads as zeros may not be durable, and no sector may become half of each.
   */
  #fillPlace(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    const { plan } = this.#changes;
    const { clusterSize } = this.#writer;
    const clusterEnd = (Math.floor(plan.coverStart / clusterSize) + 1) * clusterSize;
    plan.coverEnd = Math.min(plan.coverEnd, clusterEnd);
    this.#planned = Math.min(this.#planned, plan.coverEnd - guestOffset);
    const total = plan.coverEnd - plan.coverStart;
    const scratch = this.#scratchBuffer();
    scratch.bytes.fill(0, 0, total);
    if (kind === SOURCE.buffer) {
      const data = source.bytes.subarray(start, start + this.#planned);
      scratch.bytes.set(data, guestOffset - plan.coverStart);
    }
    this.#dataStorage.writeAt(scratch, 0, total, plan.hostOffset);
  }

  /** Fill a place with a write and what was around it before. */
  #fillAround(guestOffset: number, kind: Source, source: NativeBuffer, start: number): void {
    const { coverStart, coverEnd, hostOffset } = this.#changes.plan;
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
    this.#scratch ??= NativeBuffer.allocate(Math.max(this.#writer.clusterSize, SCRATCH_MIN));
    return this.#scratch;
  }
}
