/** A thread that compresses, changes and zeroes its own clusters of a disk, and looks at those of others. */

import { workerData } from "node:worker_threads";
import { attachDisk } from "../../src/block/attach-disk.ts";
import type { OpenChain } from "../../src/block/open-chain.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { Random } from "../support/random.ts";

export interface CompressedThreadData {
  readonly chain: OpenChain;
  readonly slot: number;
  /** The clusters whose number leaves this slot's when divided by it are this thread's. */
  readonly threads: number;
  readonly clusters: number;
  readonly clusterSize: number;
  readonly seed: number;
  readonly label: string;
  readonly steps: number;
  /** All bytes of the disk: the thread notes there what its clusters contain. */
  readonly content: SharedArrayBuffer;
}

const data: CompressedThreadData = workerData;
const { clusterSize } = data;
const disk = attachDisk(
  data.chain,
  { clusterCache: new ClusterCache() },
  { slot: data.slot, requestMaintenance: undefined },
);
const content = Buffer.from(data.content);
const random = new Random(data.label, data.seed);
const buffer = NativeBuffer.allocate(clusterSize);
const allocated = new Set<number>();

function expectOwn(cluster: number): void {
  const offset = cluster * clusterSize;
  const length = random.pick([1, 100, clusterSize / 2, clusterSize]);
  const skip = random.below(clusterSize - length + 1);
  disk.read(offset + skip, length, buffer, 0);
  const wanted = content.subarray(offset + skip, offset + skip + length);
  if (wanted.equals(buffer.bytes.subarray(0, length))) return;
  throw new Error(`cluster ${cluster}, byte ${skip}: not what was written`);
}

for (let step = 0; step < data.steps; step++) {
  const own = random.below(data.clusters / data.threads) * data.threads + data.slot;
  const offset = own * clusterSize;
  switch (random.below(8)) {
    case 0:
      disk.writeZeroes(offset, clusterSize, { unmap: true });
      content.fill(0, offset, offset + clusterSize);
      allocated.delete(own);
      break;
    case 1: {
      // Sub-clusters that are not allocated would keep a place when all is zeroed.
      const skip = allocated.has(own) ? random.below(clusterSize) : 0;
      const bytes = random.text(
        allocated.has(own) ? random.between(1, clusterSize - skip) : clusterSize,
      );
      buffer.bytes.set(bytes);
      disk.write(offset + skip, bytes.length, buffer, 0);
      bytes.copy(content, offset + skip);
      allocated.add(own);
      break;
    }
    case 2:
      disk.flush();
      disk.maintain();
      break;
    case 3:
      // Others are at work there: it must be read, whatever it is.
      disk.read(random.below(data.clusters) * clusterSize, 50, buffer, 0);
      break;
    case 4:
      expectOwn(own);
      break;
    default: {
      if (allocated.has(own)) break;
      const bytes = random.below(4) === 0 ? random.bytes(clusterSize) : random.text(clusterSize);
      buffer.bytes.set(bytes);
      disk.writeCompressed(offset, clusterSize, buffer, 0);
      bytes.copy(content, offset);
      allocated.add(own);
      expectOwn(own);
    }
  }
}
