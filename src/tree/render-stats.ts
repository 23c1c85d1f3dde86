/** The text of NAME.stats.json. */

import type { BackingChain } from "../block/backing-chain.ts";
import { sumCounters } from "../threads/counters.ts";
import type { DeviceDescription } from "./description.ts";

/** Where the counters of the device are, and who serves it. */
export interface StatsContext {
  readonly counters: SharedArrayBuffer;
  readonly device: number;
  readonly devices: number;
  readonly daemonPid: number;
}

/** Sizes in bytes. `io` counts since the mount, over all threads, snapshots included. */
export function renderStats(
  chain: BackingChain,
  description: DeviceDescription,
  context: StatsContext,
): string {
  const { image } = chain;
  const stats = {
    format: image.format,
    filename: description.imagePath,
    "virtual-size": image.virtualSize,
    "cluster-size": image.clusterSize,
    "backing-filename": image.backingFile?.name,
    "read-only": description.writing === undefined,
    "daemon-pid": context.daemonPid,
    "backing-chain": chain.images.map((layer) => ({
      filename: layer.storage.path,
      format: layer.format,
      "virtual-size": layer.virtualSize,
      "cluster-size": layer.clusterSize,
      "file-size": layer.storage.currentLength(),
      "allocated-size": layer.storage.allocatedSize(),
    })),
    io: sumCounters(context.counters, context),
  };
  return `${JSON.stringify(stats, null, 2)}\n`;
}
