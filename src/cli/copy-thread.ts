/** A thread that helps to copy a disk, until nothing is left. */

import { parentPort, workerData } from "node:worker_threads";
import { DiskCopier } from "../block/convert/disk-copier.ts";
import { TsimgfsError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { CopyFailure, CopyThreadData } from "./copy-thread-start.ts";
import { tellUnreadable } from "./copy-work.ts";

const { shared, slot, quiet }: CopyThreadData = workerData;
const copier = new DiskCopier(
  shared,
  slot,
  { clusterCache: new ClusterCache() },
  tellUnreadable(quiet),
);
try {
  while (copier.step());
} catch (error) {
  // The others must not go on for long where something is lost already.
  copier.stop();
  if (!(error instanceof TsimgfsError)) throw error;
  const { code, path, reason } = error;
  const failure: CopyFailure = { code, path, reason };
  parentPort?.postMessage(failure);
}
