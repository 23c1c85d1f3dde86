/**
 * What a mount shows, as one I/O thread sees it. Node ids are fixed, the same in all threads:
 *
 *     1                        the root: a directory, or the device itself (a file as mount point)
 *     16 + 4 d                 device d: NAME.raw
 *     17 + 4 d                 NAME.stats.json
 *     18 + 4 d                 NAME.snapshots
 *     (d + 1) * 2^32 + n       snapshot n of device d
 */

import { TWO_TO_32 } from "../binary/words.ts";
import { attachChain, type BackingChain } from "../block/backing-chain.ts";
import { CorruptionError } from "../errors.ts";
import type { ThreadResources } from "../formats/driver.ts";
import { threadCounters } from "../threads/counters.ts";
import type { DeviceDescription, TreeDescription } from "./description.ts";
import { Device } from "./device.ts";
import { Directory } from "./directory.ts";
import { DEVICE_SUFFIX, snapshotFileNames } from "./names.ts";
import type { DirectoryEntry, DirectoryNode, TreeNode } from "./node.ts";
import { renderStats } from "./render-stats.ts";
import { STATS_FILE_WORDS, StatsFile } from "./stats-file.ts";

export const ROOT_NODEID = 1;
const FIRST_DEVICE_NODEID = 16;
const NODES_PER_DEVICE = 4;
const NO_XATTRS: ReadonlyMap<string, string> = new Map();

export class Tree {
  readonly root: TreeNode;
  readonly #nodes: TreeNode[] = [];
  /** Snapshots, which are found when their directory is first read. */
  readonly #snapshotNodes = new Map<number, Device>();
  readonly #description: TreeDescription;
  readonly #resources: ThreadResources;
  readonly #thread: number;

  /** @param thread the number of the thread that uses this tree: its counters */
  constructor(description: TreeDescription, resources: ThreadResources, thread: number) {
    this.#description = description;
    this.#resources = resources;
    this.#thread = thread;
    this.root = description.rootIsDevice ? this.#deviceAsRoot() : this.#rootDirectory();
    this.#nodes[ROOT_NODEID] = this.root;
  }

  /** The node with this id, or undefined. */
  node(nodeid: number): TreeNode | undefined {
    if (nodeid < TWO_TO_32) return this.#nodes[nodeid];
    const found = this.#snapshotNodes.get(nodeid);
    if (found !== undefined) return found;
    // Another thread may have told the kernel of it: read the directory here too.
    const device = Math.floor(nodeid / TWO_TO_32) - 1;
    const directory = this.#nodes[FIRST_DEVICE_NODEID + NODES_PER_DEVICE * device + 2];
    if (directory?.kind === "directory") directory.entries();
    return this.#snapshotNodes.get(nodeid);
  }

  #rootDirectory(): Directory {
    const { devices, daemonPid } = this.#description;
    const modifiedAt = Math.max(0, ...devices.map((device) => device.modifiedAt));
    const xattrs = new Map([["user.tsimgfs.pid", String(daemonPid)]]);
    const properties = { nodeid: ROOT_NODEID, parent: undefined, modifiedAt, xattrs };
    const entries: DirectoryEntry[] = [];
    const root = new Directory(properties, () => entries);
    for (let index = 0; index < devices.length; index++)
      entries.push(...this.#deviceEntries(index, root));
    for (const { node } of entries) this.#nodes[node.nodeid] = node;
    return root;
  }

  #deviceAsRoot(): Device {
    return this.#device(0, ROOT_NODEID, this.#attach(0));
  }

  #attach(index: number): BackingChain {
    const device = this.#description.devices[index];
    if (device === undefined) throw new RangeError(`device ${index}`);
    return attachChain(device.layers, this.#resources);
  }

  #deviceEntries(index: number, root: DirectoryNode): DirectoryEntry[] {
    const { devices, counters, statsFiles, daemonPid } = this.#description;
    const description = devices[index];
    if (description === undefined) return [];
    const { name } = description;
    const nodeid = FIRST_DEVICE_NODEID + NODES_PER_DEVICE * index;
    const chain = this.#attach(index);
    const words = new Int32Array(
      statsFiles,
      index * STATS_FILE_WORDS * Int32Array.BYTES_PER_ELEMENT,
      STATS_FILE_WORDS,
    );
    const stats = new StatsFile(nodeid + 1, words, () =>
      renderStats(chain, description, {
        counters,
        device: index,
        devices: devices.length,
        daemonPid,
      }),
    );
    const entries: DirectoryEntry[] = [
      { name: `${name}${DEVICE_SUFFIX}`, node: this.#device(index, nodeid, chain) },
      { name: `${name}.stats.json`, node: stats },
    ];
    if (chain.image.format === "qcow2") {
      const snapshots = this.#snapshotDirectory(index, nodeid + 2, chain, root);
      entries.push({ name: `${name}.snapshots`, node: snapshots });
    }
    return entries;
  }

  #device(index: number, nodeid: number, chain: BackingChain): Device {
    const { image } = chain;
    return this.#makeDevice(index, nodeid, chain.virtualSize, image.clusterSize, () => chain);
  }

  #makeDevice(
    index: number,
    nodeid: number,
    virtualSize: number,
    clusterSize: number,
    attach: () => BackingChain,
  ): Device {
    const { devices, counters, daemonPid } = this.#description;
    const description = devices[index];
    if (description === undefined) throw new RangeError(`device ${index}`);
    return new Device({
      nodeid,
      virtualSize,
      clusterSize,
      attach,
      allocatedSize: description.allocatedSize,
      modifiedAt: description.modifiedAt,
      xattrs: () => deviceXattrs(description, virtualSize, clusterSize, daemonPid),
      counters: threadCounters(counters, {
        thread: this.#thread,
        device: index,
        devices: devices.length,
      }),
    });
  }

  #snapshotDirectory(
    index: number,
    nodeid: number,
    chain: BackingChain,
    parent: DirectoryNode,
  ): Directory {
    const modifiedAt = this.#description.devices[index]?.modifiedAt ?? 0;
    return new Directory({ nodeid, parent, modifiedAt, xattrs: NO_XATTRS }, () => {
      const snapshots = chain.image.readSnapshots();
      const names = snapshotFileNames(snapshots);
      return snapshots.map(({ virtualSize }, number) => {
        const id = (index + 1) * TWO_TO_32 + number;
        const attach = (): BackingChain => openSnapshot(chain, number);
        const node = this.#makeDevice(index, id, virtualSize, chain.image.clusterSize, attach);
        this.#snapshotNodes.set(id, node);
        return { name: `${names[number]}${DEVICE_SUFFIX}`, node };
      });
    });
  }
}

function openSnapshot(chain: BackingChain, number: number): BackingChain {
  try {
    return chain.openSnapshot(number);
  } catch (cause) {
    // The image is open: a bad snapshot is an I/O error of whoever reads it.
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new CorruptionError(chain.image.storage.path, `snapshot ${number}: ${reason}`, { cause });
  }
}

function deviceXattrs(
  description: DeviceDescription,
  virtualSize: number,
  clusterSize: number,
  daemonPid: number,
): ReadonlyMap<string, string> {
  const layout = description.layers[0]?.layout;
  const xattrs = new Map([
    ["user.tsimgfs.format", layout?.format ?? "raw"],
    ["user.tsimgfs.image", description.imagePath],
    ["user.tsimgfs.virtual-size", String(virtualSize)],
    ["user.tsimgfs.cluster-size", String(clusterSize)],
    ["user.tsimgfs.pid", String(daemonPid)],
  ]);
  if (layout !== undefined && layout.format !== "raw" && layout.backingFile !== undefined) {
    xattrs.set("user.tsimgfs.backing-file", layout.backingFile.name);
  }
  return xattrs;
}
