/** Making ranges of a disk read as zeros: by tables where they can say it, else by writing zeros. */

import assert from "node:assert";
import { ALLOCATION, type FormatWriter, ZeroProgress, type ZeroSpace } from "../formats/writer.ts";
import type { BackingChain } from "./backing-chain.ts";
import type { TableChanges } from "./table-changes.ts";
import { ZeroLookup } from "./zero-lookup.ts";
import type { ZeroManner } from "./zero-manner.ts";

/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

/** Writes zeros as data. */
type WriteZeroData = (guestOffset: number, length: number) => void;

export class ZeroRanges {
  readonly #chain: BackingChain;
  readonly #writer: FormatWriter;
  readonly #changes: TableChanges;
  readonly #zeros: ZeroLookup;
  readonly #writeZeroData: WriteZeroData;
  readonly #progress = new ZeroProgress();
  /** Bytes of the last range that had to be written as data. */
  written = 0;

  constructor(
    chain: BackingChain,
    writer: FormatWriter,
    changes: TableChanges,
    writeZeroData: WriteZeroData,
  ) {
    this.#chain = chain;
    this.#writer = writer;
    this.#changes = changes;
    this.#zeros = new ZeroLookup(chain);
    this.#writeZeroData = writeZeroData;
  }

  /**
   * Zero a range of any alignment.
   *
   * @returns the bytes done: less only where zeros would have to be written and may not be
   */
  zero(guestOffset: number, length: number, manner: ZeroManner): number {
    const { unit } = this.#writer;
    const end = guestOffset + length;
    let offset = guestOffset;
    this.written = 0;
    for (let turns = 0; offset < end; turns++) {
      assert(turns < TURNS_MAX, "zeroing comes to no end");
      const { virtualSize } = this.#chain;
      // Another thread has just cut it off.
      if (offset >= virtualSize) return length;
      const unitStart = offset - (offset % unit);
      const unitEnd = Math.min(unitStart + unit, virtualSize);
      let count: number;
      if (offset > unitStart || end < unitEnd) {
        count = this.#zeroPart(offset, Math.min(end, unitEnd), unitStart, unitEnd, manner);
      } else {
        const wholeEnd = end >= virtualSize ? virtualSize : end - (end % unit);
        count = this.#zeroWhole(offset, wholeEnd - offset, manner);
      }
      if (this.#progress.mustWrite) {
        if (!manner.mayWrite) return offset - guestOffset;
        this.#writeZeroData(offset, count);
        this.written += count;
      }
      offset += count;
    }
    return length;
  }

  /** Zero whole units, as many as one change of tables does. Returns the bytes done. */
  #zeroWhole(guestOffset: number, length: number, manner: ZeroManner): number {
    const progress = this.#progress;
    progress.mustWrite = false;
    this.#changes.lockExclusive();
    try {
      const zero = manner.isExplicit ? 0 : this.#zeroThere(guestOffset, length, manner.space);
      if (zero > 0) return zero;
      this.#zeroByTables(guestOffset, length, manner);
    } finally {
      this.#changes.unlockExclusive();
    }
    if (!progress.mustWrite && progress.done === 0) this.#changes.provide(progress.need);
    return progress.done;
  }

  /**
   * Zero a part of a unit: as a whole, if the rest of it reads as zeros, else by writing. Nobody may write
   * to the rest between the look and the change.
   */
  #zeroPart(
    guestOffset: number,
    end: number,
    unitStart: number,
    unitEnd: number,
    manner: ZeroManner,
  ): number {
    const progress = this.#progress;
    progress.mustWrite = false;
    const length = end - guestOffset;
    this.#changes.lockExclusive();
    try {
      if (this.#zeros.zerosAt(guestOffset, length, false) === length) return length;
      if (this.#zeros.restIsZero(unitStart, guestOffset, end, unitEnd)) {
        this.#zeroByTables(unitStart, unitEnd - unitStart, manner);
      } else {
        progress.need = ALLOCATION.inPlace;
        progress.mustWrite = true;
        progress.done = length;
      }
    } finally {
      this.#changes.unlockExclusive();
    }
    if (progress.mustWrite) return length;
    if (progress.done === 0) this.#changes.provide(progress.need);
    return Math.min(progress.done, length);
  }

  #zeroByTables(guestOffset: number, length: number, { space, isExplicit }: ZeroManner): void {
    const progress = this.#progress;
    if (this.#changes.isBusy(guestOffset, guestOffset + length)) {
      progress.need = ALLOCATION.inPlace;
      progress.mustWrite = false;
      progress.done = 0;
      return;
    }
    const backing = this.#chain.images[1];
    let backed = backing === undefined ? 0 : Math.max(0, backing.virtualSize - guestOffset);
    if (isExplicit && this.#writer.hasZeroClusters) backed = length;
    this.#writer.zero(guestOffset, length, space, backed, this.#changes.plan, progress);
    if (progress.need === ALLOCATION.copiedTable) {
      this.#changes.claimPlan();
    }
  }

  /** Bytes from `guestOffset` on, whole units, for which there is nothing to do. */
  #zeroThere(guestOffset: number, length: number, space: ZeroSpace): number {
    const zeros = this.#zeros.zerosAt(guestOffset, length, space === "keep");
    // What follows a part of a unit may be anything.
    return zeros >= length ? length : zeros - (zeros % this.#writer.unit);
  }
}
