/** Letting an image have nothing of its own: one change of tables after the other. */

import assert from "node:assert";
import { ALLOCATION, type Deallocation, ZeroProgress } from "../formats/writer.ts";
import type { TableChanges } from "./table-changes.ts";

/** Attempts that another thread's changes may thwart: more mean that something is wrong with us. */
const TURNS_MAX = 1_000_000;

/** As Disk.deallocate. */
export function deallocate(
  driver: Deallocation,
  changes: TableChanges,
  guestOffset: number,
  length: number,
): number {
  const progress = new ZeroProgress();
  for (let turns = 0; ; turns++) {
    assert(turns < TURNS_MAX, "a deallocation comes to no end");
    changes.lockExclusive();
    try {
      progress.done = 0;
      if (changes.isBusy(guestOffset, guestOffset + length)) progress.need = ALLOCATION.inPlace;
      else {
        driver.deallocate(guestOffset, length, changes.plan, progress);
        if (progress.need === ALLOCATION.copiedTable) changes.claimPlan();
      }
    } finally {
      changes.unlockExclusive();
    }
    if (progress.done > 0) return progress.done;
    changes.provide(progress.need);
  }
}
