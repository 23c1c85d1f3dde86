/** The text of NAME.stats.json. */

import { mountedAllocationOf } from "../block/allocation-stats.ts";
import type { BackingChain } from "../block/backing-chain.ts";
import type { Disk } from "../block/disk.ts";
import { jsonSnapshot } from "../block/snapshot-json.ts";
import type { DeviceDescription } from "./description.ts";
import { ioFields } from "./io-fields.ts";
import type { StreamStats } from "./stream-control.ts";

/** Where the counters of the device are, and who serves it. */
export interface StatsContext {
  readonly counters: SharedArrayBuffer;
  readonly device: number;
  readonly devices: number;
  readonly daemonPid: number;
}

/**
 * The fields are those of stats-fields.ts.
 *
 * @param stream how far streaming is; undefined: the device cannot be streamed
 */
export function renderStats(
  what: "all" | "cheap",
  disk: Disk,
  description: DeviceDescription,
  context: StatsContext,
  stream: StreamStats | undefined,
): string {
  const stats = disk.inspect(() => describe(disk.chain, description, context));
  const [top] = description.layers;
  const allocation =
    what === "all" && top !== undefined
      ? mountedAllocationOf(disk, top, description.writing?.format)
      : {};
  // Only counted where somebody opens the file: there may be many.
  const snapshots =
    what === "all" && disk.chain.image.format === "qcow2"
      ? disk.inspect(() => Array.from(disk.chain.image.readSnapshots(), jsonSnapshot))
      : undefined;
  const io = ioFields(context.counters, context);
  return `${JSON.stringify({ ...stats, ...allocation, snapshots, io, stream }, null, 2)}\n`;
}

function describe(
  chain: BackingChain,
  description: DeviceDescription,
  context: StatsContext,
): Readonly<Record<string, unknown>> {
  const { image } = chain;
  return {
    format: image.format,
    filename: description.imagePath,
    "virtual-size": image.virtualSize,
    "cluster-size": image.clusterSize,
    "backing-filename": chain.images.length > 1 ? image.backingFile?.name : undefined,
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
  };
}
