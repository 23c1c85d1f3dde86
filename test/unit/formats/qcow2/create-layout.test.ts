/** The layout of new images: the least that counts itself, and the limits of the format. */

import { describe, expect, it } from "vitest";
import {
  type CreateGeometry,
  type CreateLayout,
  layOut,
} from "../../../../src/formats/qcow2/create-layout.ts";
import { Random } from "../../../support/random.ts";

const KIB = 1024;
const GIB = 1024 ** 3;

const PLAIN: CreateGeometry = {
  virtualSize: GIB,
  clusterSize: 64 * KIB,
  refcountBits: 16,
  extendedL2: false,
  preallocate: "nothing",
};

const layoutOf = (geometry: Partial<CreateGeometry>) =>
  layOut({ ...PLAIN, ...geometry }, "new.qcow2");

describe("layOut", () => {
  it("puts header, refcounts and L1 table into four clusters, as QEMU does", () => {
    expect(layoutOf({})).toEqual({
      refcountTableOffset: 0x10000,
      refcountTableClusters: 1,
      refcountBlocksOffset: 0x20000,
      refcountBlocks: 1,
      l1Offset: 0x30000,
      l1Entries: 2,
      luksOffset: 0,
      luksBytes: 0,
      l2Offset: 0x40000,
      l2Tables: 0,
      dataOffset: 0x40000,
      mappedClusters: 0,
      clusters: 4,
    });
  });

  it("has no L1 table for a disk without bytes", () => {
    expect(layoutOf({ virtualSize: 0 })).toMatchObject({ l1Offset: 0, l1Entries: 0, clusters: 3 });
  });

  it("counts the clusters of preallocated data, or those of its tables only", () => {
    // 1 GiB: 16384 clusters and two L2 tables; 16391 clusters fit one refcount block of 32768.
    expect(layoutOf({ preallocate: "in the image" })).toMatchObject({
      l2Tables: 2,
      l2Offset: 0x40000,
      dataOffset: 0x60000,
      mappedClusters: 16384,
      clusters: 16390,
    });
    expect(layoutOf({ preallocate: "in the data file", extendedL2: true })).toMatchObject({
      l1Entries: 4,
      l2Tables: 4,
      dataOffset: 0,
      mappedClusters: 16384,
      clusters: 8,
    });
  });

  it("adds a refcount block when the block itself is one cluster too many", () => {
    // 512-byte clusters, 16 bits: 256 refcounts in a block. Header, table, block, one L1 and one L2
    // cluster for each 64 clusters of data (32 KiB), 64 L1 entries in a cluster.
    const clustersFor = (size: number) =>
      layoutOf({ clusterSize: 512, virtualSize: size, preallocate: "in the image" });
    // 1 + 1 + 1 + 1 + 4 + 248 = 256
    expect(clustersFor(248 * 512)).toMatchObject({ refcountBlocks: 1, clusters: 256 });
    // 1 + 1 + 2 + 1 + 4 + 249 = 258
    expect(clustersFor(249 * 512)).toMatchObject({ refcountBlocks: 2, clusters: 258 });
  });

  it("is the least that counts every cluster of the file, at any geometry", () => {
    const random = new Random("create layout");
    let laidOut = 0;
    for (let round = 0; round < 500; round++) {
      const geometry = randomGeometry(random);
      let layout: CreateLayout;
      try {
        layout = layOut(geometry, "new.qcow2");
      } catch (error) {
        expect(String(error)).toMatch(/too large|refcount table/);
        continue;
      }
      expectLeast(layout, geometry);
      laidOut++;
    }
    expect(laidOut).toBeGreaterThan(250);
  });

  it("refuses disks whose L1 table would have more than 32 MiB", () => {
    const largest = 128 * GIB;
    expect(layoutOf({ clusterSize: 512, virtualSize: largest }).l1Entries).toBe(2 ** 22);
    expect(() => layoutOf({ clusterSize: 512, virtualSize: largest + 512 })).toThrow(
      /^new\.qcow2: a disk of 137438953984 bytes is too large for clusters of 512 bytes: its L1 table would have 33554440 bytes/,
    );
  });

  it("refuses preallocation whose refcount table would have more than 8 MiB", () => {
    // 64 refcounts in a block of 512 bytes: 2^20 blocks count 32 GiB.
    const geometry = { clusterSize: 512, refcountBits: 64, preallocate: "in the image" } as const;
    expect(layoutOf({ ...geometry, virtualSize: 30 * GIB }).refcountTableClusters).toBeLessThan(
      16385,
    );
    expect(() => layoutOf({ ...geometry, virtualSize: 32 * GIB })).toThrow(/refcount table/);
  });
});

function randomGeometry(random: Random): CreateGeometry {
  const clusterSize = 2 ** random.between(9, 21);
  return {
    virtualSize: random.below(2 ** random.between(1, 25)) * 512,
    clusterSize,
    refcountBits: 2 ** random.between(0, 6),
    extendedL2: clusterSize >= 16 * KIB && random.below(2) === 0,
    preallocate: random.pick(["nothing", "in the image", "in the data file"]),
  };
}

/** Everything has its place, one after the other; and one cluster of refcounts less would not do. */
function expectLeast(layout: CreateLayout, geometry: CreateGeometry): void {
  const { virtualSize, clusterSize, refcountBits, extendedL2, preallocate } = geometry;
  const l1Entries = Math.ceil(virtualSize / (clusterSize * (clusterSize / (extendedL2 ? 16 : 8))));
  const l1Clusters = Math.ceil((l1Entries * 8) / clusterSize);
  const l2Tables = preallocate === "nothing" ? 0 : l1Entries;
  const data = preallocate === "in the image" ? Math.ceil(virtualSize / clusterSize) : 0;
  const others = 1 + l1Clusters + l2Tables + data;
  const { refcountBlocks: blocks, refcountTableClusters: table } = layout;
  expect(layout).toMatchObject({ l1Entries, l2Tables, clusters: others + table + blocks });

  const suffice = (blockCount: number, tableClusters: number): boolean =>
    blockCount * ((clusterSize * 8) / refcountBits) >= others + tableClusters + blockCount &&
    tableClusters * (clusterSize / 8) >= blockCount;
  expect(suffice(blocks, table)).toBe(true);
  expect(blocks > 1 && suffice(blocks - 1, table)).toBe(false);
  expect(table > 1 && suffice(blocks, table - 1)).toBe(false);

  const { refcountTableOffset, refcountBlocksOffset, l1Offset, l2Offset } = layout;
  const starts = [1, 1 + table, 1 + table + blocks, 1 + table + blocks + l1Clusters];
  const offsets = [refcountTableOffset, refcountBlocksOffset, l1Offset, l2Offset];
  if (l1Entries === 0) offsets[2] = l2Offset;
  expect(offsets).toEqual(starts.map((start) => start * clusterSize));
}
