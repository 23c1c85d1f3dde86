/** A thread that helps to copy a disk, until nothing is left. */

import { parentPort } from "node:worker_threads";
import { DiskCopier } from "../block/convert/disk-copier.ts";
import { TsimgfsError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { CopyEnd, CopyThreadData } from "./copy-thread-start.ts";
import { tellUnreadable } from "./copy-work.ts";

function copy({ shared, slot, quiet }: CopyThreadData): CopyEnd {
  const resources = { clusterCache: new ClusterCache() };
  const copier = new DiskCopier(shared, slot, resources, tellUnreadable(quiet));
  try {
    while (copier.step());
    return undefined;
  } catch (error) {
    // The others must not go on for long where something is lost already.
    copier.stop();
    if (!(error instanceof TsimgfsError)) throw error;
    const { code, path, reason } = error;
    return { code, path, reason };
  }
}

parentPort?.once("message", (data: CopyThreadData) => parentPort?.postMessage(copy(data)));
