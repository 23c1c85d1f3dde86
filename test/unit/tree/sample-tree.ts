/** A tree over image files that are laid out for one test: what an I/O thread would serve. */

import fs from "node:fs";
import { join } from "node:path";
import { attachDisk } from "../../../src/block/attach-disk.ts";
import { closeChain, type OpenChain, openChain } from "../../../src/block/open-chain.ts";
import type { WritePolicy } from "../../../src/block/write-policy.ts";
import { ClusterCache } from "../../../src/formats/compression/cluster-cache.ts";
import { createCounters } from "../../../src/threads/counters.ts";
import { createInterruptions } from "../../../src/threads/interruptions.ts";
import { createStreamStates } from "../../../src/threads/stream-state.ts";
import { createRenderedFileMemory, type TreeDescription } from "../../../src/tree/description.ts";
import { createDeviceOpens } from "../../../src/tree/device-opens.ts";
import { deviceNameOf } from "../../../src/tree/names.ts";
import { createPartitionWindows } from "../../../src/tree/partition-windows.ts";
import { Tree } from "../../../src/tree/tree.ts";
import { createTruncatedFiles } from "../../../src/tree/truncated-files.ts";
import { withScratch } from "../../support/scratch.ts";

export const DAEMON_PID = 4711;
/** Seconds since the epoch, with a fraction that a double holds exactly. */
export const MODIFIED_AT = 1_700_000_000.5;
/** What the image files are said to occupy, bytes. */
export const ALLOCATED_SIZE = 8192;
/** Threads of a tree, at the most. */
const THREADS = 4;

export interface SampleTree {
  readonly directory: string;
  readonly description: TreeDescription;
  /** The tree as thread `thread` sees it. */
  readonly treeOf: (thread: number) => Tree;
  /** The tree of thread 0. */
  readonly tree: Tree;
  /** Ends writing to a device, as the main thread does when the tree is not used any more. */
  readonly endWriting: (device: number) => void;
}

export interface SampleTreeOptions {
  /** Only the first ones of the images are devices. */
  readonly devices?: number;
  readonly rootIsDevice?: boolean;
  /** How the devices are written to; default: they are read-only. */
  readonly policy?: WritePolicy;
}

/** Calls `body` with a tree of these images: file name and content. */
export async function withTree(
  images: readonly (readonly [name: string, bytes: Uint8Array])[],
  body: (sample: SampleTree) => void | Promise<void>,
  { devices = images.length, rootIsDevice = false, policy }: SampleTreeOptions = {},
): Promise<void> {
  await withScratch("tree", async (directory) => {
    const chains: OpenChain[] = [];
    try {
      for (const [name, bytes] of images) fs.writeFileSync(join(directory, name), bytes);
      for (const [name] of images.slice(0, devices)) {
        const options = {
          format: undefined,
          backingPolicy: undefined,
          forceShare: false,
          // The main thread is one more.
          writing: policy && { policy, threads: THREADS + 1 },
        };
        chains.push(openChain(join(directory, name), options));
      }
      const description: TreeDescription = {
        devices: chains.map(({ layers, writing }, index) => {
          const path = join(directory, images[index]?.[0] ?? "");
          return {
            name: deviceNameOf(path),
            imagePath: path,
            layers,
            writing,
            allocatedSize: ALLOCATED_SIZE,
            modifiedAt: MODIFIED_AT + index,
          };
        }),
        rootIsDevice,
        counters: createCounters(THREADS, chains.length),
        renderedFiles: createRenderedFileMemory(chains.length),
        deviceOpens: createDeviceOpens(chains.length),
        truncatedFiles: createTruncatedFiles(chains.length),
        partitionWindows: createPartitionWindows(chains.length),
        streams: createStreamStates(chains.length),
        interruptions: createInterruptions(THREADS),
        daemonPid: DAEMON_PID,
      };
      const treeOf = (thread: number): Tree =>
        new Tree(
          description,
          { clusterCache: new ClusterCache() },
          { thread, requestMaintenance: undefined, wakeStream: undefined },
        );
      const endWriting = (device: number): void => {
        const chain = chains[device];
        if (chain === undefined) throw new RangeError(`device ${device}`);
        const thread = { slot: THREADS, requestMaintenance: undefined };
        attachDisk(chain, { clusterCache: new ClusterCache() }, thread).close();
      };
      await body({ directory, description, treeOf, tree: treeOf(0), endWriting });
    } finally {
      for (const chain of chains) closeChain(chain);
    }
  });
}
