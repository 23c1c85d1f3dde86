/** The text of NAME.stats.json. */

import { mountedAllocationOf } from "../block/allocation-stats.ts";
import type { BackingChain } from "../block/backing-chain.ts";
import type { Disk } from "../block/disk.ts";
import { jsonSnapshot } from "../block/snapshot-json.ts";
import type { Storage } from "../storage/storage.ts";
import type { DeviceDescription } from "./description.ts";
import { ioFields } from "./io-fields.ts";
import type { StreamStats } from "./stream-control.ts";

const SILENT = { error: "not counted: the medium of an image in this mount gives no answer" };
const SILENT_ALLOCATION = { "alloc-info": SILENT, guest: SILENT };

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
 * @param what `cheap`: nothing that is counted in tables; `silent`: nor anything for which the medium or another
 *   thread would be waited for
 * @param stream how far streaming is; undefined: the device cannot be streamed
 */
export function renderStats(
  what: "all" | "cheap" | "silent",
  disk: Disk,
  description: DeviceDescription,
  context: StatsContext,
  stream: StreamStats | undefined,
): string {
  const chain =
    what === "silent"
      ? describe(disk.chain, description, context, () => ({}))
      : disk.inspect(() => describe(disk.chain, description, context, sizesOf));
  const [top] = description.layers;
  const counted =
    what === "all" && top !== undefined
      ? mountedAllocationOf(disk, top, description.writing?.format)
      : {};
  const allocation = what === "silent" ? SILENT_ALLOCATION : counted;
  // Only counted where somebody opens the file: there may be many.
  const snapshots =
    what === "all" && disk.chain.image.format === "qcow2"
      ? disk.inspect(() => Array.from(disk.chain.image.readSnapshots(), jsonSnapshot))
      : undefined;
  const io = ioFields(context.counters, context);
  return `${JSON.stringify({ ...chain, ...allocation, snapshots, io, stream }, null, 2)}\n`;
}

function describe(
  chain: BackingChain,
  description: DeviceDescription,
  context: StatsContext,
  sizes: (layer: Storage) => Readonly<Record<string, number>>,
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
      ...sizes(layer.storage),
    })),
  };
}

function sizesOf(storage: Storage): Readonly<Record<string, number>> {
  return {
    "file-size": storage.currentLength(),
    "allocated-size": storage.allocatedSize(),
  };
}
