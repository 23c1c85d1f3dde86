/** A map for drawings, made by hand: no image is behind it. */

import { PictureCells } from "../../../../src/block/picture-cells.ts";
import type { PictureMap } from "../../../../src/block/picture-map.ts";

export const KIB = 1024;
export const CLUSTER = 64 * KIB;

/** 300 clusters on the disk, 100 in the file; the cells of `max` at the most. */
export function sampleMap(max = 5120, path = "/images/vm.qcow2"): PictureMap {
  const disk = new PictureCells(300 * CLUSTER, CLUSTER, max);
  disk.add("data", 0, 70 * CLUSTER);
  disk.add("compressed", 70 * CLUSTER, 10 * CLUSTER);
  disk.add("zero", 80 * CLUSTER, 20 * CLUSTER);
  disk.add("backing", 100 * CLUSTER, 50 * CLUSTER + 512);
  disk.add("unallocated", 150 * CLUSTER + 512, 150 * CLUSTER - 512);
  for (const cluster of [3, 4, 5, 72]) disk.addBreak(cluster * CLUSTER);
  const file = new PictureCells(100 * CLUSTER - 512, CLUSTER, max);
  file.add("metadata", 0, 4 * CLUSTER);
  file.add("data", 4 * CLUSTER, 70 * CLUSTER);
  file.add("compressed", 74 * CLUSTER, 2 * CLUSTER);
  file.add("snapshot", 76 * CLUSTER, 10 * CLUSTER);
  file.add("leaked", 86 * CLUSTER, CLUSTER);
  file.add("free", 87 * CLUSTER, CLUSTER / 2);
  file.add("hole", 87.5 * CLUSTER, 20 * CLUSTER);
  return { path, format: "qcow2", clusterSize: CLUSTER, disk, file, dataFile: undefined };
}
