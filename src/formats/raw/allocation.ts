/** What the bytes of a raw image are for: all of them are the disk. */

import type { Storage } from "../../storage/storage.ts";
import { AllocationCounter, type FileAllocation } from "../allocation.ts";

/** @throws {StorageError} */
export function countRawAllocation(storage: Storage): FileAllocation {
  const counter = new AllocationCounter(storage);
  counter.addUsed(0, storage.currentLength());
  return counter.finish();
}
