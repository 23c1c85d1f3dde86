/**
 * What a mount shows, as one I/O thread sees it. Node ids are fixed, the same in all threads:
 *
 *     1                        the root: a directory, or the device itself (a file as mount point)
 *     2                        metrics
 *     16 + 4 d                 device d: NAME.raw
 *     17 + 4 d                 NAME.stats.json
 *     18 + 4 d                 NAME.snapshots
 *     19 + 4 d                 NAME.partitions
 *     (d + 1) * 2^32 + n       snapshot n of device d
 *     2^52 + d * 2^32 + n      window n of device d: a partition
 */

import { TWO_TO_32 } from "../binary/words.ts";
import type { ThreadResources } from "../formats/driver.ts";
import { Interruptions } from "../threads/interruptions.ts";
import { renderedFileWords, type TreeDescription, type TreeThread } from "./description.ts";
import type { AfterReply } from "./device.ts";
import { Directory } from "./directory.ts";
import { FIRST_PARTITION_NODEID, ImageNodes } from "./image-nodes.ts";
import { metricsText } from "./metrics.ts";
import { METRICS_NAME } from "./names.ts";
import type { DirectoryEntry, TreeNode } from "./node.ts";
import { RenderedFile } from "./rendered-file.ts";

export const ROOT_NODEID = 1;
const METRICS_NODEID = 2;
const FIRST_DEVICE_NODEID = 16;
const NODES_PER_DEVICE = 4;

export class Tree {
  readonly root: TreeNode;
  /** Told of requests that may be given up. */
  readonly interruptions: Interruptions;
  readonly #nodes: TreeNode[] = [];
  readonly #images: ImageNodes[];
  readonly #afterReply: AfterReply = {
    disk: undefined,
    staleNodeid: 0,
    dropPages: undefined,
  };

  constructor(description: TreeDescription, resources: ThreadResources, thread: TreeThread) {
    this.interruptions = new Interruptions(description.interruptions, thread.thread);
    this.#images = description.devices.map((_, index) => {
      return new ImageNodes(description, resources, thread, {
        index,
        afterReply: this.#afterReply,
        interruptions: this.interruptions,
      });
    });
    this.root = description.rootIsDevice ? this.#deviceAsRoot() : this.#rootDirectory(description);
    this.#nodes[ROOT_NODEID] = this.root;
  }

  /** The node with this id, or undefined. */
  node(nodeid: number): TreeNode | undefined {
    if (nodeid < TWO_TO_32 || this.root.kind === "file") return this.#nodes[nodeid];
    const high = Math.floor(nodeid / TWO_TO_32);
    const low = nodeid % TWO_TO_32;
    if (nodeid < FIRST_PARTITION_NODEID) return this.#images[high - 1]?.snapshot(low);
    return this.#images[high - FIRST_PARTITION_NODEID / TWO_TO_32]?.partition(low);
  }

  /** @param drop lets the kernel forget all pages of a node, which nobody has open */
  dropPagesBy(drop: (nodeid: number) => void): void {
    this.#afterReply.dropPages = drop;
  }

  /** The node whose attributes a request has changed, asked for before its reply; 0: there is none. */
  takeStaleNodeid(): number {
    const { staleNodeid } = this.#afterReply;
    if (staleNodeid !== 0) this.#afterReply.staleNodeid = 0;
    return staleNodeid;
  }

  /** A request has left something to do after its reply. */
  get hasLateWork(): boolean {
    return this.#afterReply.disk !== undefined;
  }

  /** Do what a request has left for after its reply, before the next one is read. */
  finishRequest(): void {
    const { disk } = this.#afterReply;
    if (disk === undefined) return;
    this.#afterReply.disk = undefined;
    disk.storeFetched();
  }

  #deviceAsRoot(): TreeNode {
    const [image] = this.#images;
    if (image === undefined) throw new RangeError("a mount has at least one device");
    return image.device(ROOT_NODEID);
  }

  #rootDirectory({ devices, renderedFiles, daemonPid }: TreeDescription): Directory {
    const modifiedAt = Math.max(0, ...devices.map((device) => device.modifiedAt));
    const xattrs = new Map([["user.tsimgfs.pid", String(daemonPid)]]);
    const properties = {
      nodeid: ROOT_NODEID,
      parent: undefined,
      modifiedAt,
      xattrs,
      isFixed: true,
    };
    const entries: DirectoryEntry[] = [];
    const root = new Directory(properties, {
      names: () => entries.map(({ name }) => name),
      node: (index) => nodeOf(entries, index),
    });
    this.#images.forEach((image, index) => {
      entries.push(...image.entries(FIRST_DEVICE_NODEID + NODES_PER_DEVICE * index, root));
    });
    const words = renderedFileWords(renderedFiles, devices.length);
    const metrics = new RenderedFile(METRICS_NODEID, words, () =>
      metricsText(this.#images.map((image) => image.metrics())),
    );
    entries.push({ name: METRICS_NAME, node: metrics });
    for (const { node } of entries) this.#nodes[node.nodeid] = node;
    return root;
  }
}

function nodeOf(entries: readonly DirectoryEntry[], index: number): TreeNode {
  const entry = entries[index];
  if (entry === undefined) throw new RangeError(`entry ${index}`);
  return entry.node;
}
