/** What the refcounts of an image say is used, for every width, against refcounts that the test laid out. */

import { describe, expect, it } from "vitest";
import type { FileAllocation } from "../../../../src/formats/allocation.ts";
import { countQcow2Allocation } from "../../../../src/formats/qcow2/allocation.ts";
import { readQcow2Layout } from "../../../../src/formats/qcow2/layout.ts";
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

function countStored(storage: MemoryStorage): FileAllocation {
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true });
  const { refcount_table_offset: offset, refcount_table_clusters: clusters } = layout.header;
  return countQcow2Allocation(layout, { offset, clusters }, storage);
}

function count(bytes: Uint8Array): FileAllocation {
  return countStored(new MemoryStorage("disk.qcow2", bytes));
}

describe("countQcow2Allocation", () => {
  it.each([0, 1, 2, 3, 4, 5, 6])("knows what is used, with refcount_order %i", (order) => {
    const random = new Random(`allocation ${order}`);
    const bits = 2 ** order;
    const image = imageWithClusters(700, order);
    const total = image.bytes.length / CLUSTER;
    const first = total - 600;
    let expected = first;
    for (let cluster = first; cluster < total; cluster++) {
      // One bit somewhere in the width: also values whose lowest or highest byte is 0.
      const value = random.below(3) === 0 ? 0n : 1n << BigInt(random.below(bits));
      image.setRefcount(cluster, value);
      if (value !== 0n) expected++;
    }
    const { usedData, unusedData, fileSize } = count(image.bytes);
    expect({ usedData, unusedData, fileSize }).toEqual({
      usedData: expected * CLUSTER,
      unusedData: (total - expected) * CLUSTER,
      fileSize: image.bytes.length,
    });
  });

  it("says of a file that is cut that what it lacks is overrun", () => {
    const image = imageWithClusters(10);
    const whole = count(image.bytes);
    for (const lost of [1, 511, 512, 513, 3 * CLUSTER]) {
      expect(count(image.bytes.subarray(0, image.bytes.length - lost))).toEqual({
        ...whole,
        fileSize: image.bytes.length - lost,
        usedData: whole.usedData - lost,
        usedOverrun: lost,
      });
    }
  });

  it("takes a block that is absent, or a hole, for zeros", () => {
    // A block of 16-bit refcounts covers 256 clusters.
    const image = imageWithClusters(600);
    const total = image.bytes.length / CLUSTER;
    const block = Number(image.getU64(Number(image.header("refcount_table_offset")) + 8));
    const absent = imageWithClusters(600).setRefcountTable(1, 0n);
    expect(count(absent.bytes).usedData).toBe((total - 256) * CLUSTER);
    const storage = new MemoryStorage("disk.qcow2", image.bytes);
    storage.holes = [[block, block + CLUSTER]];
    const { usedData, usedZero, unusedZero } = countStored(storage);
    expect(usedData + usedZero).toBe((total - 256) * CLUSTER);
    expect(usedZero + unusedZero).toBe(CLUSTER);
    expect(storage.reads.some(({ offset }) => offset === block)).toBe(false);
  });

  it("looks only at bits 9 to 63 of the table", () => {
    const image = imageWithClusters(10);
    const entry = image.getU64(Number(image.header("refcount_table_offset")));
    const changed = imageWithClusters(10).setRefcountTable(0, entry | 0x1ffn);
    expect(count(changed.bytes)).toEqual(count(image.bytes));
  });

  it.each([
    [
      "past the end of the file",
      2n ** 40n,
      /refcount block 1 offset 0x10000000000 is past the end/,
    ],
    ["above 2^53", 2n ** 63n, /refcount block 1 offset is above the limit of 2\^53 - 1/],
  ])("refuses a block %s", (_, entry, reason) => {
    const image = imageWithClusters(600).setRefcountTable(1, entry);
    expect(() => count(image.bytes)).toThrow(reason);
  });

  it("refuses a block that is not aligned", () => {
    const image = buildQcow2({ virtualSize: 65536 }).setRefcountTable(0, 0x2_0200n);
    expect(() => count(image.bytes)).toThrow(
      /^disk\.qcow2: refcount block 0 offset 0x20200 is not a multiple of the cluster size 0x10000$/,
    );
  });

  it("refuses a table that names a block twice: the work would have no bound", () => {
    const image = imageWithClusters(600);
    const entry = image.getU64(Number(image.header("refcount_table_offset")));
    image.setRefcountTable(2, entry);
    expect(() => count(image.bytes)).toThrow(
      /refcount block 2 is at 0x[0-9a-f]+, where refcount block 0/,
    );
  });

  it("refuses a table that is not in the file", () => {
    const image = imageWithClusters(10).setHeader("refcount_table_offset", 2n ** 30n);
    expect(() => count(image.bytes)).toThrow(/refcount table offset 0x40000000 is past the end/);
  });

  it("counts all that a table says to be used behind the end of the file", () => {
    // The second block covers 256 clusters that the file does not have: all are said to be in use.
    const image = imageWithClusters(10);
    const block = image.bytes.length;
    const bytes = Buffer.concat([image.bytes, Buffer.alloc(CLUSTER, 0xff)]);
    const entryOffset = Number(image.header("refcount_table_offset")) + 8;
    bytes.writeBigUInt64BE(BigInt(block), entryOffset);
    const allocation = count(bytes);
    expect(allocation).toEqual({
      ...count(image.bytes),
      fileSize: bytes.length,
      unusedData: CLUSTER,
      usedOverrun: 256 * CLUSTER,
    });
  });

  it("has a sum that is the length of the file, or says one line, whatever the table is", () => {
    const random = new Random("hostile refcount table");
    for (let round = 0; round < 60; round++) {
      const image = imageWithClusters(300, random.below(7));
      const table = Number(image.header("refcount_table_offset"));
      for (let left = random.between(1, 3); left > 0; left--) {
        const value = random.pick([
          BigInt(random.below(image.bytes.length / CLUSTER)) * BigInt(CLUSTER),
          BigInt(random.u32()) << BigInt(random.below(32)),
          0n,
        ]);
        image.setU64(table + 8 * random.below(CLUSTER / 8), value);
      }
      const cut = random.below(3) === 0 ? random.below(2 * CLUSTER) : 0;
      const bytes = image.bytes.subarray(0, image.bytes.length - cut);
      let allocation: FileAllocation;
      try {
        allocation = count(bytes);
      } catch (error) {
        expect(String(error)).toMatch(/^CorruptionError: disk\.qcow2: [^\n]+$/);
        continue;
      }
      const { fileSize, usedOverrun, ...classes } = allocation;
      expect(Object.values(classes).reduce((sum, bytes) => sum + bytes, 0)).toBe(bytes.length);
      expect(fileSize).toBe(bytes.length);
      expect(usedOverrun).toBeGreaterThanOrEqual(0);
    }
  });
});
