/** What the tree shows of one image: its device, its statistics, its snapshots, its partitions. */

import fs from "node:fs";
import { TWO_TO_32 } from "../binary/words.ts";
import { attachDisk } from "../block/attach-disk.ts";
import type { BackingChain } from "../block/backing-chain.ts";
import type { Disk } from "../block/disk.ts";
import { TsimgfsError } from "../errors.ts";
import type { ThreadResources } from "../formats/driver.ts";
import { backingFileOf } from "../formats/formats.ts";
import { reservedBytes } from "../formats/image-allocation.ts";
import { GROWABLE_XATTR, IMAGE_XATTR } from "../storage/fixed-length.ts";
import { sumCounts, threadCounters } from "../threads/counters.ts";
import type { Interruptions } from "../threads/interruptions.ts";
import type { RequestProgress } from "../threads/request-progress.ts";
import { StreamState } from "../threads/stream-state.ts";
import {
  type DeviceDescription,
  renderedFileWords,
  type TreeDescription,
  type TreeThread,
} from "./description.ts";
import { type AfterReply, Device, type DeviceProperties, type HostState } from "./device.ts";
import { DeviceOpens } from "./device-opens.ts";
import { COUNTERS_XATTR, counterSample } from "./io-fields.ts";
import type { DeviceMetrics } from "./metrics.ts";
import { DEVICE_SUFFIX } from "./names.ts";
import type { DirectoryEntry, DirectoryNode, Xattrs } from "./node.ts";
import type { Partition } from "./partition.ts";
import { PartitionNodes } from "./partition-nodes.ts";
import { PartitionWindows } from "./partition-windows.ts";
import { renderStats } from "./render-stats.ts";
import { RenderedFile } from "./rendered-file.ts";
import { RESIZE_XATTRS, ResizeControl } from "./resize-control.ts";
import { SNAPSHOT_XATTRS, SnapshotControl } from "./snapshot-control.ts";
import { SnapshotNodes } from "./snapshot-nodes.ts";
import { STREAM_XATTR, StreamControl } from "./stream-control.ts";
import { TruncatedFiles } from "./truncated-files.ts";

/** The unit of st_blocks, bytes. */
const STAT_BLOCK_SIZE = 512;

const NO_XATTRS: ReadonlyMap<string, string> = new Map();

/** Node ids of partitions are from here on: 2^32 for each device. */
export const FIRST_PARTITION_NODEID = 2 ** 52;

/** How a device is used: the image itself, or a snapshot of it. */
interface DeviceUse
  extends Pick<DeviceProperties, "isWritable" | "isGrowable" | "attach" | "truncated" | "opens"> {
  /** How the image gets what it lacks; undefined: it lacks nothing, or is read-only. */
  readonly stream: StreamControl | undefined;
}

export class ImageNodes {
  readonly #tree: TreeDescription;
  readonly #description: DeviceDescription;
  readonly #index: number;
  readonly #disk: Disk;
  readonly #chain: BackingChain;
  readonly #counters: Float64Array;
  readonly #afterReply: AfterReply;
  readonly #interruptions: Interruptions;
  readonly #progress: RequestProgress | undefined;
  readonly #stream: StreamControl | undefined;
  readonly #snapshots: SnapshotNodes;
  /** undefined: the mount point is a file. */
  #partitions: PartitionNodes | undefined;

  constructor(
    tree: TreeDescription,
    resources: ThreadResources,
    { thread, progress, requestMaintenance, wakeStream }: TreeThread,
    {
      index,
      afterReply,
      interruptions,
    }: { index: number; afterReply: AfterReply; interruptions: Interruptions },
  ) {
    const description = tree.devices[index];
    if (description === undefined) throw new RangeError(`device ${index}`);
    this.#tree = tree;
    this.#description = description;
    this.#index = index;
    const devices = tree.devices.length;
    this.#counters = threadCounters(tree.counters, { thread, device: index, devices });
    const disk = attachDisk(description, resources, {
      slot: thread,
      requestMaintenance: requestMaintenance && (() => requestMaintenance(index)),
      counters: this.#counters,
      progress,
    });
    const { snapshot } = description;
    this.#disk = snapshot === undefined ? disk : disk.openSnapshot(snapshot);
    this.#chain = this.#disk.chain;
    this.#afterReply = afterReply;
    this.#interruptions = interruptions;
    this.#progress = progress;
    this.#snapshots = this.#snapshotNodes();
    if (description.writing !== undefined && description.layers.length > 1) {
      const state = new StreamState(tree.streams, index);
      this.#stream = new StreamControl(state, this.#disk, () => wakeStream?.(index));
    }
  }

  /** What monitoring asks for. */
  metrics(): DeviceMetrics {
    const { counters, devices } = this.#tree;
    const { name, imagePath, writing, layers } = this.#description;
    const [top] = layers;
    return {
      name,
      image: imagePath,
      format: this.#chain.image.format,
      isWritable: writing !== undefined,
      ...this.#sizes(),
      reserved: top === undefined ? 0 : reservedBytes(top.layout, writing?.format),
      counts: sumCounts(counters, { device: this.#index, devices: devices.length }),
      stream: this.#stream?.stats(),
    };
  }

  #sizes(): Pick<DeviceMetrics, "virtualSize" | "fileSize" | "allocatedSize"> {
    const { image } = this.#chain;
    const { layers, allocatedSize } = this.#description;
    if (this.#isSilent()) {
      return {
        virtualSize: image.virtualSize,
        fileSize: layers[0]?.file.length ?? 0,
        allocatedSize,
      };
    }
    return this.#disk.inspect(() => ({
      virtualSize: image.virtualSize,
      fileSize: image.storage.currentLength(),
      allocatedSize: image.storage.allocatedSize(),
    }));
  }

  /** The medium of some image gives no answer: what need not ask it does not. */
  #isSilent(): boolean {
    return this.#progress?.isSilent ?? false;
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
      const { modifiedAt } = this.#description;
      const node = this.#snapshots.directory({
        nodeid: nodeid + 2,
        parent: root,
        modifiedAt,
        xattrs: NO_XATTRS,
      });
      entries.push({ name: `${name}.snapshots`, node });
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
      opens: writing && new DeviceOpens(this.#tree.deviceOpens, this.#index),
      stream: this.#stream,
    });
  }

  /** The device of a snapshot; undefined if there is none any more. */
  snapshot(number: number): Device | undefined {
    return this.#snapshots.node(number);
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

  #makeDevice(nodeid: number, virtualSize: number, { stream, ...use }: DeviceUse): Device {
    const description = this.#description;
    const { clusterSize } = this.#chain.image;
    const { daemonPid, counters, devices } = this.#tree;
    const place = { device: this.#index, devices: devices.length };
    const device = new Device({
      nodeid,
      virtualSize,
      clusterSize,
      ...use,
      hostState: () => (this.#isSilent() ? description : hostState(description)),
      xattrs: () => {
        const hasBacking = this.#disk.hasBacking();
        const size = device.currentSize();
        const { isGrowable } = use;
        const properties = { virtualSize: size, clusterSize, daemonPid, hasBacking, isGrowable };
        const sample = (): string =>
          JSON.stringify(counterSample(counters, place, this.#stream?.stats()));
        return withCounters(deviceXattrs(description, properties, stream), sample);
      },
      commands: this.#commands(nodeid),
      counters: this.#counters,
      afterReply: this.#afterReply,
    });
    return device;
  }

  #snapshotNodes(): SnapshotNodes {
    return new SnapshotNodes(this.#disk, ({ number, virtualSize, attach }) => {
      const nodeid = (this.#index + 1) * TWO_TO_32 + number;
      return this.#makeDevice(nodeid, virtualSize, {
        isWritable: false,
        isGrowable: false,
        attach,
        truncated: undefined,
        opens: undefined,
        stream: undefined,
      });
    });
  }

  /** What extended attributes of the device can be set to. */
  #commands(nodeid: number): ReadonlyMap<string, (value: string) => void> {
    const { path } = this.#chain.image.storage;
    const stream = (value: string): void => {
      if (this.#stream === undefined)
        throw new TsimgfsError("ENODATA", path, "has no backing file");
      this.#stream.command(value);
    };
    const commands = new Map([[STREAM_XATTR, stream]]);
    const truncated = this.#truncatedFiles();
    if (truncated === undefined) return commands;
    const snapshots = new SnapshotControl({
      disk: this.#disk,
      opens: new DeviceOpens(this.#tree.deviceOpens, this.#index),
      dropPages: () => this.#afterReply.dropPages?.(nodeid),
      stream: new StreamState(this.#tree.streams, this.#index),
    });
    const resizing = new ResizeControl(this.#disk, truncated, this.#interruptions);
    for (const how of ["grow", "shrink"] as const) {
      commands.set(RESIZE_XATTRS[how], (value) => resizing.command(how, value));
    }
    for (const action of ["create", "apply", "delete"] as const) {
      commands.set(SNAPSHOT_XATTRS[action], (name) => snapshots.command(action, name));
    }
    return commands;
  }

  #statsFile(nodeid: number): RenderedFile {
    const { counters, renderedFiles, daemonPid, devices } = this.#tree;
    const words = renderedFileWords(renderedFiles, this.#index);
    const context = { counters, device: this.#index, devices: devices.length, daemonPid };
    return new RenderedFile(nodeid, words, (what) =>
      renderStats(
        this.#isSilent() ? "silent" : what,
        this.#disk,
        this.#description,
        context,
        this.#stream?.stats(),
      ),
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

/** Attributes, and the counters as one more: their text is only made for who asks for it. */
function withCounters(xattrs: ReadonlyMap<string, string>, text: () => string): Xattrs {
  return {
    get: (name) => (name === COUNTERS_XATTR ? text() : xattrs.get(name)),
    keys: () => [...xattrs.keys(), COUNTERS_XATTR],
  };
}

function deviceXattrs(
  description: DeviceDescription,
  {
    virtualSize,
    clusterSize,
    daemonPid,
    hasBacking,
    isGrowable,
  }: {
    readonly virtualSize: number;
    readonly clusterSize: number;
    readonly daemonPid: number;
    readonly hasBacking: boolean;
    readonly isGrowable: boolean;
  },
  stream: StreamControl | undefined,
): ReadonlyMap<string, string> {
  const layout = description.layers[0]?.layout;
  const xattrs = new Map([
    ["user.tsimgfs.format", layout?.format ?? "raw"],
    [IMAGE_XATTR, description.imagePath],
    ["user.tsimgfs.virtual-size", String(virtualSize)],
    ["user.tsimgfs.cluster-size", String(clusterSize)],
    ["user.tsimgfs.pid", String(daemonPid)],
  ]);
  const backing = layout && backingFileOf(layout);
  if (backing !== undefined && hasBacking) xattrs.set("user.tsimgfs.backing-file", backing.name);
  if (isGrowable) xattrs.set(GROWABLE_XATTR, "true");
  if (stream !== undefined) xattrs.set(STREAM_XATTR, stream.text());
  return xattrs;
}
