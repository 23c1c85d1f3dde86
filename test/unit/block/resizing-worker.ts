/** Another thread with the same disk: it changes the size. */

import { workerData } from "node:worker_threads";
import { attachDisk } from "../../../src/block/attach-disk.ts";
import type { OpenChain } from "../../../src/block/open-chain.ts";
import { ClusterCache } from "../../../src/formats/compression/cluster-cache.ts";

export interface ResizingWorkerData {
  readonly chain: OpenChain;
  readonly slot: number;
  /** Bytes. */
  readonly size: number;
  /** A word that becomes 1 when the size is about to be changed. */
  readonly started: SharedArrayBuffer;
}

const { chain, slot, size, started }: ResizingWorkerData = workerData;
const thread = { slot, requestMaintenance: undefined };
const disk = attachDisk(chain, { clusterCache: new ClusterCache() }, thread);
const word = new Int32Array(started);
Atomics.store(word, 0, 1);
Atomics.notify(word, 0);
disk.resize(size);
