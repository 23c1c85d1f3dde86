/**
 * Changes of tables that take more than one step: what each needs before it can be tried again, and
 * which guest ranges other threads are in the middle of.
 */

import { ALLOCATION, type Allocation, type FormatWriter, WritePlan } from "../formats/writer.ts";
import type { AccessLock } from "../threads/access-lock.ts";
import type { BusyRanges } from "../threads/busy-ranges.ts";

export class TableChanges {
  /** What the driver planned last. */
  readonly plan = new WritePlan();
  readonly #writer: FormatWriter;
  readonly #lock: AccessLock;
  readonly #busy: BusyRanges;
  /** The slot of another thread whose change must end first, and how often it had ended one. */
  #waitSlot = -1;
  #waitReleases = 0;

  constructor(writer: FormatWriter, lock: AccessLock, busy: BusyRanges) {
    this.#writer = writer;
    this.#lock = lock;
    this.#busy = busy;
  }

  /** Share the lock, and know what other threads have changed. */
  lockShared(): void {
    this.#lock.lockShared();
    this.#writer.refresh(this.#lock.generation);
  }

  unlockShared(): void {
    this.#lock.unlockShared();
  }

  /** As `lockShared`, keeping all others out. */
  lockExclusive(): void {
    this.#lock.lockExclusive();
    this.#writer.refresh(this.#lock.generation);
  }

  unlockExclusive(): void {
    this.#lock.unlockExclusive();
  }

  /** Whether another thread is about to change clusters of a range; `provide` waits for it then. */
  isBusy(start: number, end: number): boolean {
    const size = this.#writer.clusterSize;
    const first = start - (start % size);
    this.#waitSlot = this.#busy.findOverlap(first, Math.ceil(end / size) * size);
    if (this.#waitSlot < 0) return false;
    this.#waitReleases = this.#busy.releasesOf(this.#waitSlot);
    return true;
  }

  /** Claim what the plan covers: it is changed when it is durable. Under the exclusive lock. */
  claimPlan(): void {
    this.#busy.claim(this.plan.coverStart, this.plan.coverEnd);
  }

  /** Keep all other threads from changing tables, until `releaseAll`. Without the lock. */
  claimAll(): void {
    for (;;) {
      this.#lock.lockExclusive();
      const isBusy = this.isBusy(0, Number.MAX_SAFE_INTEGER);
      if (!isBusy) this.#busy.claim(0, Number.MAX_SAFE_INTEGER);
      this.#lock.unlockExclusive();
      if (!isBusy) return;
      this.#busy.waitForRelease(this.#waitSlot, this.#waitReleases);
    }
  }

  releaseAll(): void {
    this.#lock.lockExclusive();
    this.#busy.release();
    this.#lock.unlockExclusive();
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
        if (durable) this.#writer.link(this.plan);
        else this.#writer.abandon(this.plan);
      } finally {
        this.#busy.release();
        this.#lock.unlockExclusive();
      }
    }
  }
}
