/**
 * Whether an image's clusters were allocated ahead without data (preallocation=metadata): then the
 * host's holes tell more of its zeros than its tables do. The rule is QEMU's: clusters in use exceed
 * what the host has allocated by a tenth, and by two.
 */

import type { Storage } from "../../storage/storage.ts";
import { NativeBuffer } from "../../syscalls/native-buffer.ts";
import type { Qcow2Layout } from "./layout.ts";
import { countReferencedClusters } from "./refcounts.ts";

export function looksPreallocated(layout: Qcow2Layout, storage: Storage): boolean {
  const allocated = Math.floor(storage.allocatedSize() / layout.clusterSize);
  const threshold = Math.max(Math.floor((allocated * 10) / 9), allocated + 2);
  const clusters = Math.ceil(storage.length / layout.clusterSize);
  if (clusters < threshold) return false;
  const block = NativeBuffer.allocate(layout.clusterSize);
  return (
    countReferencedClusters(layout, storage, { clusters, enough: threshold }, block) >= threshold
  );
}
