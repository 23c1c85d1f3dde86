/** What the tree shows of one image: its device, its statistics, its snapshots, its partitions. */

import fs from "node:fs";
import { TWO_TO_32 } from "../binary/words.ts";
import { attachDisk } from "../block/attach-disk.ts";
import type { BackingChain } from "../block/backing-chain.ts";
import type { Disk } from "../block/disk.ts";
import { CorruptionError } from "../errors.ts";
import type { ThreadResources } from "../formats/driver.ts";
import { backingFileOf } from "../formats/formats.ts";
import { threadCounters } from "../threads/counters.ts";
import { StreamState } from "../threads/stream-state.ts";
import type { DeviceDescription, TreeDescription, TreeThread } from "./description.ts";
import { type AfterReply, Device, type DeviceProperties, type HostState } from "./device.ts";
import { Directory } from "./directory.ts";
import { DEVICE_SUFFIX, snapshotFileNames } from "./names.ts";
import type { DirectoryEntry, DirectoryNode } from "./node.ts";
import type { Partition } from "./partition.ts";
import { PartitionNodes } from "./partition-nodes.ts";
import { PartitionWindows } from "./partition-windows.ts";
import { renderStats } from "./render-stats.ts";
import { STATS_FILE_WORDS, StatsFile } from "./stats-file.ts";
import { STREAM_XATTR, StreamControl } from "./stream-control.ts";
import { TruncatedFiles } from "./truncated-files.ts";

/** The unit of st_blocks, bytes. */
const STAT_BLOCK_SIZE = 512;

const NO_XATTRS: ReadonlyMap<string, string> = new Map();

/** Node ids of partitions are from here on: 2^32 for each device. */
export const FIRST_PARTITION_NODEID = 2 ** 52;

/** Snapshots that a thread keeps attached; the one that was found first goes first. */
const SNAPSHOTS_KEPT_MAX = 64;

export class ImageNodes {
  readonly #tree: TreeDescription;
  readonly #description: DeviceDescription;
  readonly #index: number;
  readonly #disk: Disk;
  readonly #chain: BackingChain;
  readonly #counters: Float64Array;
  readonly #afterReply: AfterReply;
  readonly #stream: StreamControl | undefined;
  /** Virtual sizes of the snapshots, bytes; read when they are first asked for. */
  #snapshotSizes: Float64Array | undefined;
  readonly #snapshots = new Map<number, Device>();
  /** undefined: the mount point is a file. */
  #partitions: PartitionNodes | undefined;

  constructor(
    tree: TreeDescription,
    resources: ThreadResources,
    { thread, requestMaintenance, wakeStream }: TreeThread,
    { index, afterReply }: { index: number; afterReply: AfterReply },
  ) {
    const description = tree.devices[index];
    if (description === undefined) throw new RangeError(`device ${index}`);
    this.#tree = tree;
    this.#description = description;
    this.#index = index;
    const devices = tree.devices.length;
    this.#counters = threadCounters(tree.counters, { thread, device: index, devices });
    this.#disk = attachDisk(description, resources, {
      slot: thread,
      requestMaintenance: requestMaintenance && (() => requestMaintenance(index)),
      counters: this.#counters,
    });
    this.#chain = this.#disk.chain;
    this.#afterReply = afterReply;
    if (description.writing !== undefined && description.layers.length > 1) {
      const state = new StreamState(tree.streams, index);
      this.#stream = new StreamControl(state, this.#disk, () => wakeStream?.(index));
    }
  }

  /** NAME.raw and what stands beside it, with node ids from `nodeid` on. */
  entries(nodeid: number, root: DirectoryNode): DirectoryEntry[] {
    const { name } = this.#description;
    const device = this.device(nodeid);
    const stats = this.#statsFile(nodeid + 1);
    const entries: DirectoryEntry[] = [
      { name: `${name}${DEVICE_SUFFIX}`, node: device },
      { name: `${name}.stats.json`, node: stats },
    ];
    if (this.#chain.image.format === "qcow2") {
      const snapshots = this.#snapshotDirectory(nodeid + 2, root);
      entries.push({ name: `${name}.snapshots`, node: snapshots });
    }
    this.#partitions = this.#partitionNodes(device);
    const partitions = this.#partitions.directory(nodeid + 3, root);
    entries.push({ name: `${name}.partitions`, node: partitions });
    return entries;
  }

  device(nodeid: number): Device {
    const { writing } = this.#description;
    return this.#makeDevice(nodeid, this.#chain.virtualSize, {
      isWritable: writing !== undefined,
      isGrowable: writing?.policy.growable ?? false,
      attach: () => this.#disk,
      truncated: this.#truncatedFiles(),
      stream: this.#stream,
    });
  }

  /** The device of a snapshot, by its place in the image's table; undefined if there is none. */
  snapshot(number: number): Device | undefined {
    const known = this.#snapshots.get(number);
    if (known !== undefined) return known;
    const device = this.#makeSnapshot(number);
    if (device === undefined) return undefined;
    const [oldest] = this.#snapshots.keys();
    if (oldest !== undefined && this.#snapshots.size >= SNAPSHOTS_KEPT_MAX) {
      this.#snapshots.delete(oldest);
    }
    this.#snapshots.set(number, device);
    return device;
  }

  /** A partition, by the sequence number of its window; undefined if there is none. */
  partition(sequence: number): Partition | undefined {
    return this.#partitions?.node(sequence);
  }

  #partitionNodes(device: Device): PartitionNodes {
    return new PartitionNodes({
      disk: this.#disk,
      device,
      imagePath: this.#description.imagePath,
      firstNodeid: FIRST_PARTITION_NODEID + this.#index * TWO_TO_32,
      windows: new PartitionWindows(this.#tree.partitionWindows, this.#index),
      truncated: this.#truncatedFiles(),
    });
  }

  /** undefined: the device is read-only. */
  #truncatedFiles(): TruncatedFiles | undefined {
    if (this.#description.writing === undefined) return undefined;
    return new TruncatedFiles(this.#tree.truncatedFiles, this.#index);
  }

  #makeDevice(
    nodeid: number,
    virtualSize: number,
    use: Pick<DeviceProperties, "isWritable" | "isGrowable" | "attach" | "truncated" | "stream">,
  ): Device {
    const description = this.#description;
    const { clusterSize } = this.#chain.image;
    const { daemonPid } = this.#tree;
    return new Device({
      nodeid,
      virtualSize,
      clusterSize,
      ...use,
      hostState: () => hostState(description),
      xattrs: () => {
        const hasBacking = this.#disk.hasBacking();
        const properties = { virtualSize, clusterSize, daemonPid, hasBacking };
        return deviceXattrs(description, properties, use.stream);
      },
      counters: this.#counters,
      afterReply: this.#afterReply,
    });
  }

  #makeSnapshot(number: number): Device | undefined {
    this.#snapshotSizes ??= Float64Array.from(
      this.#chain.image.readSnapshots(),
      ({ virtualSize }) => virtualSize,
    );
    const virtualSize = this.#snapshotSizes[number];
    if (virtualSize === undefined) return undefined;
    const nodeid = (this.#index + 1) * TWO_TO_32 + number;
    return this.#makeDevice(nodeid, virtualSize, {
      isWritable: false,
      isGrowable: false,
      attach: () => openSnapshot(this.#disk, number),
      truncated: undefined,
      stream: undefined,
    });
  }

  #snapshotDirectory(nodeid: number, parent: DirectoryNode): Directory {
    const { modifiedAt } = this.#description;
    const properties = { nodeid, parent, modifiedAt, xattrs: NO_XATTRS };
    return new Directory(properties, {
      names: () => {
        const names = snapshotFileNames(this.#chain.image.readSnapshots());
        // Joined, not added: strings that were added keep their parts.
        return names.map((name) => [name, DEVICE_SUFFIX].join(""));
      },
      node: (index) => this.#snapshotOfTable(index),
    });
  }

  /** Not kept: whoever lists a directory asks for every one. */
  #snapshotOfTable(number: number): Device {
    const device = this.#makeSnapshot(number);
    if (device === undefined) throw new RangeError(`snapshot ${number}`);
    return device;
  }

  #statsFile(nodeid: number): StatsFile {
    const { counters, statsFiles, daemonPid, devices } = this.#tree;
    const start = this.#index * STATS_FILE_WORDS * Int32Array.BYTES_PER_ELEMENT;
    const words = new Int32Array(statsFiles, start, STATS_FILE_WORDS);
    const context = { counters, device: this.#index, devices: devices.length, daemonPid };
    return new StatsFile(nodeid, words, (what) =>
      renderStats(what, this.#disk, this.#description, context, this.#stream?.stats()),
    );
  }
}

/** What the image's file says: now, if it is written to. */
function hostState(description: DeviceDescription): HostState {
  const [top] = description.layers;
  if (description.writing === undefined || top === undefined) return description;
  const stats = fs.fstatSync((top.dataFile ?? top.file).fd);
  const allocatedSize = stats.isFile() ? stats.blocks * STAT_BLOCK_SIZE : top.file.length;
  return { allocatedSize, modifiedAt: stats.mtimeMs / 1000 };
}

function openSnapshot(disk: Disk, number: number): Disk {
  try {
    return disk.openSnapshot(number);
  } catch (cause) {
    // The image is open: a bad snapshot is an I/O error of whoever reads it.
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new CorruptionError(disk.chain.image.storage.path, `snapshot ${number}: ${reason}`, {
      cause,
    });
  }
}

function deviceXattrs(
  description: DeviceDescription,
  {
    virtualSize,
    clusterSize,
    daemonPid,
    hasBacking,
  }: { virtualSize: number; clusterSize: number; daemonPid: number; hasBacking: boolean },
  stream: StreamControl | undefined,
): ReadonlyMap<string, string> {
  const layout = description.layers[0]?.layout;
  const xattrs = new Map([
    ["user.tsimgfs.format", layout?.format ?? "raw"],
    ["user.tsimgfs.image", description.imagePath],
    ["user.tsimgfs.virtual-size", String(virtualSize)],
    ["user.tsimgfs.cluster-size", String(clusterSize)],
    ["user.tsimgfs.pid", String(daemonPid)],
  ]);
  const backing = layout && backingFileOf(layout);
  if (backing !== undefined && hasBacking) xattrs.set("user.tsimgfs.backing-file", backing.name);
  if (stream !== undefined) xattrs.set(STREAM_XATTR, stream.text());
  return xattrs;
}
