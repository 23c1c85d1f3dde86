/**
 * Changes of tables that take more than one step: what each needs before it can be tried again, which
 * guest ranges other threads are in the middle of, and the copies that wait to be linked.
 */

import assert from "node:assert";
import {
  ALLOCATION,
  type Allocation,
  type FormatWriter,
  WritePlan,
  ZeroProgress,
} from "../formats/writer.ts";
import type { NativeBuffer } from "../syscalls/native-buffer.ts";
import type { AccessLock } from "../threads/access-lock.ts";
import type { BusyRanges } from "../threads/busy-ranges.ts";
import type { UnlockedReads } from "../threads/unlocked-reads.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { PendingCopies } from "./pending-copies.ts";
import { SharedReads } from "./shared-reads.ts";

/** Copies that are linked before other threads get the lock. */
const LINKED_AT_ONCE = 32;

/** No thread must be waited for. */
const NOBODY = -1;

/** What threads share of an image: its lock, and who is about to change what. */
export interface TableChangesContext {
  readonly chain: BackingChain;
  readonly writer: FormatWriter;
  readonly lock: AccessLock;
  /** This thread's range for changes that must be durable first. */
  readonly changing: BusyRanges;
  /** This thread's range for what it copies from a backing file. */
  readonly copying: BusyRanges;
  /** Copies that wait to be linked; undefined: there are none. */
  readonly copies: PendingCopies | undefined;
  /** How reads give up the lock; undefined: they do not. */
  readonly unlocked: UnlockedReads | undefined;
}

export class TableChanges {
  /** What the driver planned last. */
  readonly plan = new WritePlan();
  /** Reading what the disk shows now. */
  readonly reads: SharedReads;
  readonly #chain: BackingChain;
  readonly #writer: FormatWriter;
  readonly #lock: AccessLock;
  readonly #changing: BusyRanges;
  readonly #copying: BusyRanges;
  readonly #copies: PendingCopies | undefined;
  readonly #copyPlan = new WritePlan();
  readonly #zeroProgress = new ZeroProgress();
  /** The slot of another thread whose change must end first, and how often it had ended one. */
  #waitSlot = NOBODY;
  #waitReleases = 0;
  /** Copies must be linked first. */
  #waitsForCopies = false;

  constructor(context: TableChangesContext) {
    this.#chain = context.chain;
    this.#writer = context.writer;
    this.#lock = context.lock;
    this.#changing = context.changing;
    this.#copying = context.copying;
    this.#copies = context.copies;
    this.reads = new SharedReads(this, context.unlocked);
  }

  /** Share the lock, and know what other threads have changed. */
  lockShared(): void {
    this.#lock.lockShared();
    this.#refresh();
  }

  unlockShared(): void {
    this.#lock.unlockShared();
  }

  /** As `lockShared`, keeping all others out. */
  lockExclusive(): void {
    this.#lock.lockExclusive();
    this.#refresh();
  }

  unlockExclusive(): void {
    this.#lock.unlockExclusive();
  }

  /** Read what the disk shows now. Without the lock. */
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void {
    this.reads.read(this.#chain, "all", guestOffset, length, target, start);
  }

  #refresh(): void {
    const { generation } = this.#lock;
    this.#writer.refresh(generation);
    this.#chain.refresh(generation);
  }

  /**
   * Whether something must end before clusters of a range can be changed: another thread is about to
   * change them, or copies of them wait. `provide` waits for it then.
   */
  isBusy(start: number, end: number): boolean {
    const size = this.#writer.clusterSize;
    const first = start - (start % size);
    const last = Math.ceil(end / size) * size;
    this.#waitsForCopies = false;
    this.#waitSlot = this.#changing.findOverlap(first, last, this.#copying.slot);
    if (this.#waitSlot !== NOBODY) {
      this.#waitReleases = this.#changing.releasesOf(this.#waitSlot);
      return true;
    }
    this.#waitsForCopies = this.#copies?.overlaps(first, last) ?? false;
    return this.#waitsForCopies;
  }

  /** Claim what the plan covers: it is changed when it is durable. Under the exclusive lock. */
  claimPlan(): void {
    this.#changing.claim(this.plan.coverStart, this.plan.coverEnd);
  }

  /** Claim a range to copy it from a backing file. Under the exclusive lock. */
  claimCopy(start: number, end: number): void {
    this.#copying.claim(start, end);
  }

  /** Give up what `claimCopy` claimed. Without the lock. */
  releaseCopy(): void {
    this.#lock.lockExclusive();
    this.#copying.release();
    this.#lock.unlockExclusive();
  }

  /** Keep all other threads from changing tables, until `releaseAll`. Without the lock. */
  claimAll(): void {
    for (;;) {
      this.#lock.lockExclusive();
      const isBusy = this.isBusy(0, Number.MAX_SAFE_INTEGER);
      if (!isBusy) this.#changing.claim(0, Number.MAX_SAFE_INTEGER);
      this.#lock.unlockExclusive();
      if (!isBusy) return;
      this.#waitForOthers();
    }
  }

  releaseAll(): void {
    this.#lock.lockExclusive();
    this.#changing.release();
    this.#lock.unlockExclusive();
  }

  /**
   * Let the image alone be the disk: it has all that its backing files have. Without the lock.
   *
   * @param unlink changes the header, durably, so that it names no backing file
   * @throws {TsimgfsError} nothing has changed for the threads of this process
   */
  dropBacking(unlink: () => void): void {
    this.alone(() => {
      // Copies were linked just now: their tables come before a header that relies on them.
      this.#writer.flush();
      this.#writer.changeHeader(unlink);
      this.lockExclusive();
      this.#chain.dropBacking();
      this.#lock.bumpGeneration();
      this.unlockExclusive();
    });
  }

  /** Do what no other thread may change tables or the size meanwhile. Without the lock. */
  alone(action: () => void): void {
    this.#lock.resizing.lock();
    try {
      this.claimAll();
      try {
        action();
      } finally {
        this.releaseAll();
      }
    } finally {
      this.#lock.resizing.unlock();
    }
  }

  /** Do what a change of tables needs first, without the lock. */
  provide(need: Allocation): void {
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
        this.#waitForOthers();
        break;
    }
  }

  /** Wait for what `isBusy` found. */
  #waitForOthers(): void {
    if (this.#waitsForCopies) this.linkCopies();
    else if (this.#waitSlot !== NOBODY) {
      this.#changing.waitForRelease(this.#waitSlot, this.#waitReleases);
    }
  }

  /** What the plan covers, and this thread has claimed, is linked when it is durable. */
  #linkDurably(): void {
    try {
      this.#writer.flush();
    } catch (error) {
      this.abandonClaimed();
      throw error;
    }
    this.linkClaimed();
  }

  /** Link what the plan covers, and this thread has claimed. Without the lock. */
  linkClaimed(): void {
    this.lockExclusive();
    try {
      this.#writer.link(this.plan);
    } finally {
      this.#changing.release();
      this.#lock.unlockExclusive();
    }
  }

  /** What the plan covers, and this thread has claimed, comes to nothing. Without the lock. */
  abandonClaimed(): void {
    this.lockExclusive();
    try {
      this.#writer.abandon(this.plan);
    } finally {
      this.#changing.release();
      this.#lock.unlockExclusive();
    }
  }

  /**
   * Link all copies that wait, when they are durable. Without the lock.
   *
   * @returns whether it made durable all that was written before
   * @throws {TsimgfsError} they still wait
   */
  linkCopies(): boolean {
    const copies = this.#copies;
    if (copies === undefined || copies.count === 0) return false;
    copies.linking.lock();
    try {
      this.lockExclusive();
      copies.startLinking();
      this.unlockExclusive();
      // Another thread may just have done it.
      if (copies.linkable === 0) return false;
      this.#writer.flush();
      this.#linkRuns(copies);
      return true;
    } finally {
      copies.linking.unlock();
    }
  }

  /** At the end: copies that could not be linked come to nothing. Without the lock. */
  dropCopies(): void {
    const copies = this.#copies;
    if (copies === undefined || copies.count === 0) return;
    const plan = this.#copyPlan;
    this.lockExclusive();
    try {
      copies.startLinking();
      for (let index = 0; index < copies.linkable; index++) {
        if (copies.isZeros(index)) continue;
        copies.load(index, plan);
        this.#writer.abandon(plan);
      }
      copies.remove(copies.linkable);
    } finally {
      this.unlockExclusive();
    }
  }

  /** In pieces: other threads get the lock between them. */
  #linkRuns(copies: PendingCopies): void {
    // Zeros are in several runs, and come with the last of them.
    const piece = copies.hasLinkableZeros() ? copies.linkable : LINKED_AT_ONCE;
    while (copies.linkable > 0) {
      this.lockExclusive();
      try {
        this.#linkFirst(copies, Math.min(piece, copies.linkable));
      } finally {
        this.unlockExclusive();
      }
    }
  }

  /** Under the exclusive lock. */
  #linkFirst(copies: PendingCopies, runs: number): void {
    let linked = 0;
    try {
      for (; linked < runs; linked++) {
        if (copies.isZeros(linked)) continue;
        copies.load(linked, this.#copyPlan);
        this.#writer.link(this.#copyPlan);
      }
      this.#linkZeros(copies);
      copies.remove(linked);
    } catch (error) {
      // A table may refer to a run also if changing it has failed: its place is not given back any more.
      copies.keepPlace(linked);
      // What is linked by now may be written to in place: no zeros must come after that.
      copies.forgetZeros();
      copies.remove(linked);
      copies.stopLinking();
      throw error;
    }
  }

  #linkZeros(copies: PendingCopies): void {
    const plan = this.#copyPlan;
    for (let index = 0; index < copies.linkable; index++) {
      if (!copies.isZeros(index)) continue;
      copies.load(index, plan);
      const length = plan.coverEnd - plan.coverStart;
      if (length === 0) continue;
      // If it takes more than a change of a table it is no gain: it reads as zeros already.
      this.#writer.zero(plan.coverStart, length, "release", length, plan, this.#zeroProgress);
      assert(this.#zeroProgress.need !== ALLOCATION.copiedTable, "the table is the image's own");
    }
  }

  /** Filling what was planned failed. Without the lock. */
  abandonPlan(): void {
    this.lockExclusive();
    try {
      this.#writer.abandon(this.plan);
    } finally {
      this.unlockExclusive();
    }
  }

  /** Add what the plan covers, filled, to the copies that wait. Without the lock. */
  addCopy(copies: PendingCopies, zeros: readonly number[]): void {
    for (;;) {
      this.lockExclusive();
      const isAdded = copies.add(this.plan);
      for (let index = 0; isAdded && index < zeros.length; index += 2) {
        copies.addZeros(zeros[index] ?? 0, zeros[index + 1] ?? 0);
      }
      this.unlockExclusive();
      if (isAdded) return;
      this.linkCopies();
    }
  }
}
