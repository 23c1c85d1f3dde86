// The allocation statistics of the engine for an image that is not mounted.

import { allocationOf } from "../../src/block/allocation-stats.ts";
import { attachChain } from "../../src/block/attach-disk.ts";
import { Disk } from "../../src/block/disk.ts";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";

/** @throws what the engine throws */
export function engineStats(
  path: string,
  format?: "raw" | "qcow2" | "qed",
): Readonly<Record<string, unknown>> {
  const open = openChain(path, { format, backingPolicy: undefined, forceShare: false });
  try {
    const [top] = open.layers;
    if (top === undefined) throw new Error("no image");
    const chain = attachChain(open.layers, { clusterCache: new ClusterCache() });
    return allocationOf(Disk.readOnly(chain), top);
  } finally {
    closeChain(open);
  }
}
