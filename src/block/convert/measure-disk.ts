/** How much of a disk a copy needs. */

import { BlockStatus } from "../block-status.ts";
import type { Disk } from "../disk.ts";

/** Bytes of the clusters of a copy that has what the disk has, zeros left out; as QEMU counts. */
export function copiedClusters(disk: Disk, clusterSize: number): number {
  const { virtualSize } = disk;
  const status = new BlockStatus();
  let bytes = 0;
  let offset = 0;
  while (offset < virtualSize) {
    disk.statusAt(offset, virtualSize - offset, status);
    let end = offset + status.length;
    if (!status.zero) {
      end = Math.ceil(end / clusterSize) * clusterSize;
      bytes += end - (offset - (offset % clusterSize));
    }
    offset = end;
  }
  return bytes;
}
