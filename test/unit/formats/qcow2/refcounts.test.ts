/** Counting clusters in use, for every refcount width, against refcounts that the test itself laid out. */

import { describe, expect, it } from "vitest";
import { readQcow2Layout } from "../../../../src/formats/qcow2/layout.ts";
import { looksPreallocated } from "../../../../src/formats/qcow2/preallocation.ts";
import { countReferencedClusters } from "../../../../src/formats/qcow2/refcounts.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";
import { buildQcow2, type Qcow2Image } from "../../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../../support/qcow2-tree-builder.ts";
import { Random } from "../../../support/random.ts";
import { MemoryStorage } from "../../memory-storage.ts";

const CLUSTER = 512;

/** An image with at least `count` data clusters of 512 bytes. */
function imageWithClusters(count: number, refcountOrder = 4): Qcow2Image {
  const clusters: Record<number, Qcow2Cluster> = {};
  for (let index = 0; index < count; index++) {
    clusters[index] = { kind: "data", bytes: Uint8Array.of(index) };
  }
  return buildQcow2({ clusterBits: 9, virtualSize: count * CLUSTER, refcountOrder, clusters });
}

interface Count {
  readonly count: number;
  readonly storage: MemoryStorage;
}

function countClusters(
  image: Qcow2Image,
  clusters = image.bytes.length / CLUSTER,
  enough = Number.MAX_SAFE_INTEGER,
): Count {
  const storage = new MemoryStorage("disk.qcow2", image.bytes);
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true });
  const block = NativeBuffer.allocate(layout.clusterSize);
  storage.reads.length = 0;
  return { count: countReferencedClusters(layout, storage, { clusters, enough }, block), storage };
}

describe("countReferencedClusters", () => {
  it.each([0, 1, 2, 3, 4, 5, 6])("counts what is not 0, with refcount_order %i", (order) => {
    const random = new Random(`refcounts ${order}`);
    const bits = 2 ** order;
    const image = imageWithClusters(1000, order);
    const total = image.bytes.length / CLUSTER;
    const used: boolean[] = [];
    for (let cluster = 0; cluster < total; cluster++) {
      // One bit somewhere in the width: also values whose lowest or highest byte is 0.
      const value = random.below(3) === 0 ? 0n : 1n << BigInt(random.below(bits));
      image.setRefcount(cluster, value);
      used.push(value !== 0n);
    }
    for (const clusters of [0, 1, 7, 8, 9, 63, 64, 65, 500, total - 1, total]) {
      const expected = used.slice(0, clusters).filter(Boolean).length;
      expect(countClusters(image, clusters).count).toBe(expected);
    }
  });

  it("takes a refcount block that is absent or above 2^53 for zeros", () => {
    const image = imageWithClusters(600);
    const total = image.bytes.length / CLUSTER;
    // A block of 16-bit refcounts covers 256 clusters.
    // 0x1ff: only reserved bits.
    for (const entry of [0n, 0x1ffn, 2n ** 53n, 2n ** 63n]) {
      const changed = imageWithClusters(600).setRefcountTable(1, entry);
      expect(countClusters(changed).count).toBe(total - 256);
    }
    expect(countClusters(image).count).toBe(total);
  });

  it("takes a block past the end of the file for zeros", () => {
    const image = imageWithClusters(600).setRefcountTable(0, 2n ** 40n);
    expect(countClusters(image).count).toBe(image.bytes.length / CLUSTER - 256);
  });

  it("does not look beyond the refcount table", () => {
    const image = imageWithClusters(10);
    expect(countClusters(image, 2 ** 40).count).toBe(image.bytes.length / CLUSTER);
  });

  it("stops at the block where there are enough", () => {
    const image = imageWithClusters(600);
    const { count, storage } = countClusters(image, image.bytes.length / CLUSTER, 100);
    expect(count).toBe(256);
    expect(storage.reads.filter(({ length }) => length === CLUSTER)).toHaveLength(1);
  });
});

describe("looksPreallocated", () => {
  /** Whether an image whose `used` clusters are all in use looks so when the host allocated this much. */
  function looks(used: number, allocated: number): boolean {
    const image = imageWithClusters(used);
    const total = image.bytes.length / CLUSTER;
    for (let cluster = used; cluster < total; cluster++) image.setRefcount(cluster, 0);
    for (let cluster = 0; cluster < used; cluster++) image.setRefcount(cluster, 1);
    const storage = new MemoryStorage("disk.qcow2", image.bytes);
    storage.allocated = allocated;
    return looksPreallocated(
      readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true }),
      storage,
    );
  }

  // QEMU's threshold for n clusters that the host allocated: max(n * 10 / 9, n + 2), rounded down.
  it.each([
    { used: 10, allocated: 8, preallocated: true },
    { used: 10, allocated: 9, preallocated: false },
    { used: 10, allocated: 0, preallocated: true },
    { used: 40, allocated: 36, preallocated: true },
    { used: 40, allocated: 37, preallocated: false },
    { used: 400, allocated: 360, preallocated: true },
    { used: 400, allocated: 361, preallocated: false },
  ])("with $used clusters in use and $allocated allocated: $preallocated", (sample) => {
    expect(looks(sample.used, sample.allocated * CLUSTER)).toBe(sample.preallocated);
    expect(looks(sample.used, sample.allocated * CLUSTER + CLUSTER - 1)).toBe(sample.preallocated);
  });

  it("reads no refcounts where the file is too short for it", () => {
    const image = imageWithClusters(100);
    const storage = new MemoryStorage("disk.qcow2", image.bytes);
    const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true });
    storage.reads.length = 0;
    expect(looksPreallocated(layout, storage)).toBe(false);
    expect(storage.reads).toEqual([]);
  });
});
