/** Zeros that are written, and ranges that are zeroed: what qemu-img map and the host say of them. */

import { describe, expect, it } from "vitest";
import type { WritePolicy } from "../../../src/block/write-policy.ts";
import { type Qcow2Options, qcow2Bytes } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { Random } from "../../support/random.ts";
import { expectBytes } from "../expect-bytes.ts";
import { type DiskFiles, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const CLUSTER = 4096;
const NAME = "disk.qcow2";
const random = new Random("zero writing");
const content = random.bytes(8 * CLUSTER);
const backing = random.bytes(8 * CLUSTER);

/** Clusters of data, by a letter for each: D data, z zeros, Z zeros with a place, anything else: none. */
function clustersOf(letters: string): Record<number, Qcow2Cluster> {
  const clusters: Record<number, Qcow2Cluster> = {};
  [...letters].forEach((letter, index) => {
    const bytes = content.subarray(index * CLUSTER, (index + 1) * CLUSTER);
    if (letter === "D") clusters[index] = { kind: "data", bytes };
    if (letter === "z") clusters[index] = { kind: "zero" };
    if (letter === "Z") clusters[index] = { kind: "zero-preallocated", bytes };
  });
  return clusters;
}

interface Sample {
  /** Clusters of the image before. */
  readonly before: string;
  readonly policy?: Partial<WritePolicy>;
  readonly options?: Qcow2Options;
}

/** Makes an image of eight clusters, calls `body` with its disk, and gives the clusters afterwards. */
async function clustersAfter(
  { before, policy, options }: Sample,
  body: (disk: WritableDisk, files: DiskFiles) => void,
): Promise<string> {
  return await withDiskFiles(async (files) => {
    const clusters = clustersOf(before);
    files.put("base.raw", backing);
    const virtualSize = 8 * CLUSTER - 512;
    files.put(NAME, qcow2Bytes({ clusterBits: 12, virtualSize, clusters, ...options }));
    let shown: Uint8Array = Buffer.alloc(0);
    const change = (disk: WritableDisk): void => {
      body(disk, files);
      shown = disk.read();
    };
    // Reading changes nothing here.
    files.use(NAME, change, { policy: { copyOnRead: false, ...policy } });
    await files.expectClean(NAME);
    expectBytes(await files.converted(NAME), shown, "as qemu-img reads it");
    return await files.clusters(NAME, CLUSTER);
  });
}

const OVER: Qcow2Options = { backingFile: "base.raw", backingFormat: "raw" };

describe("zeros that are written", () => {
  it.each([
    { detectZeroes: "off", discard: "unmap", after: "DDDDDDDD" },
    { detectZeroes: "on", discard: "unmap", after: "DDzzDDDD" },
    { detectZeroes: "on", discard: "ignore", after: "DDZZDDDD" },
    { detectZeroes: "unmap", discard: "unmap", after: "DDzzDDDD" },
  ] as const)(
    "become $after with detect-zeroes $detectZeroes and discard $discard",
    async (row) => {
      const { after, ...policy } = row;
      const clusters = await clustersAfter({ before: "DDDDDDDD", policy }, (disk) => {
        disk.fill(2 * CLUSTER, 2 * CLUSTER, 0);
        const expected = Buffer.from(content.subarray(0, 8 * CLUSTER - 512));
        expected.fill(0, 2 * CLUSTER, 4 * CLUSTER);
        expectBytes(disk.read(), expected);
      });
      expect(clusters).toBe(after);
    },
  );

  it("allocate nothing where nothing is, except with detect-zeroes off", async () => {
    const write = (disk: WritableDisk): void => disk.fill(CLUSTER - 5, 3 * CLUSTER, 0);
    expect(await clustersAfter({ before: "........" }, write)).toBe("........");
    const off = { detectZeroes: "off" } as const;
    expect(await clustersAfter({ before: "........", policy: off }, write)).toBe("DDDD....");
  });

  it("are found in the middle of data", async () => {
    const clusters = await clustersAfter({ before: "........" }, (disk) => {
      const bytes = Buffer.from(content.subarray(100, 100 + 6 * CLUSTER));
      bytes.fill(0, CLUSTER, 4 * CLUSTER);
      disk.write(100, bytes);
    });
    // From 100 on: clusters 2 and 3 are all zeros, 1 and 4 in part.
    expect(clusters).toBe("DD..DDD.");
  });

  it("make a cluster of zeros when the last part of it becomes zeros", async () => {
    const clusters = await clustersAfter({ before: "DDDDDDDD" }, (disk) => {
      for (let part = 0; part < 4; part++) disk.fill(2 * CLUSTER + part * 1024, 1024, 0);
      // In any order, in any piece.
      for (const part of [3, 0, 2, 1]) disk.fill(4 * CLUSTER + part * 1024, 1024, 0);
      disk.fill(5 * CLUSTER + 1, CLUSTER - 1, 0);
      disk.fill(6 * CLUSTER, CLUSTER - 1, 0);
      disk.fill(6 * CLUSTER + CLUSTER - 1, 1, 0);
    });
    expect(clusters).toBe("DDzDzDzD");
  });

  it("take the end of the disk for the end of a cluster", async () => {
    const clusters = await clustersAfter({ before: "DDDDDDDD" }, (disk) => {
      disk.fill(7 * CLUSTER, CLUSTER - 512, 0);
    });
    expect(clusters).toBe("DDDDDDDz");
  });

  it("hide a backing file, and cost nothing where it has zeros", async () => {
    const clusters = await clustersAfter({ before: "..D.....", options: OVER }, (disk, files) => {
      const shown = Buffer.from(backing.subarray(0, 8 * CLUSTER - 512));
      content.copy(shown, 2 * CLUSTER, 2 * CLUSTER, 3 * CLUSTER);
      shown.fill(0, CLUSTER, 4 * CLUSTER);
      disk.fill(CLUSTER, 3 * CLUSTER, 0);
      expectBytes(disk.read(), shown);
      expectBytes(files.bytes("base.raw"), backing);
    });
    expect(clusters).toBe("dzzzdddd");
  });

  it("are written as data over a backing file in version 2, which has no other way", async () => {
    const options: Qcow2Options = { ...OVER, version: 2 };
    const write = (disk: WritableDisk): void => disk.fill(CLUSTER, 3 * CLUSTER, 0);
    expect(await clustersAfter({ before: "..D.....", options }, write)).toBe("dDDDdddd");
    const alone: Qcow2Options = { version: 2 };
    expect(await clustersAfter({ before: "DDDDDDDD", options: alone }, write)).toBe("D...DDDD");
  });
});

describe("ranges that are zeroed", () => {
  it.each([
    { unmap: true, discard: "unmap", before: "DDDDDDDD", after: "DzzzDDDD" },
    { unmap: false, discard: "unmap", before: "DDDDDDDD", after: "DZZZDDDD" },
    { unmap: true, discard: "ignore", before: "DDDDDDDD", after: "DZZZDDDD" },
    { unmap: true, discard: "unmap", before: "DZzDDDDD", after: "DzzzDDDD" },
    { unmap: false, discard: "unmap", before: "DZzDDDDD", after: "DZzZDDDD" },
    { unmap: true, discard: "unmap", before: "........", after: "........" },
    { unmap: false, discard: "unmap", before: "........", after: "........" },
  ] as const)("unmap $unmap, discard $discard: $before becomes $after", async (row) => {
    const { unmap, discard, before, after } = row;
    const clusters = await clustersAfter({ before, policy: { discard } }, (disk) => {
      disk.disk.writeZeroes(CLUSTER, 3 * CLUSTER, { unmap });
      const zeros = disk.read(CLUSTER, 3 * CLUSTER);
      expectBytes(zeros, Buffer.alloc(3 * CLUSTER));
    });
    expect(clusters).toBe(after);
  });

  it("of any alignment touch nothing outside", async () => {
    const clusters = await clustersAfter({ before: "DDDDDDDD" }, (disk) => {
      disk.disk.writeZeroes(CLUSTER - 1, 2 * CLUSTER + 2, { unmap: true });
      const expected = Buffer.from(content.subarray(0, 8 * CLUSTER - 512));
      expected.fill(0, CLUSTER - 1, 3 * CLUSTER + 1);
      expectBytes(disk.read(), expected);
    });
    expect(clusters).toBe("DzzDDDDD");
  });

  it("give their space back to the host", async () => {
    await withDiskFiles(async (files) => {
      const size = 16 * 65536;
      const data = new Random("space").bytes(size);
      files.put(NAME, qcow2Bytes({ virtualSize: size }));
      files.use(NAME, (disk) => disk.write(0, data));
      expect(files.stored(NAME)).toBeGreaterThanOrEqual(size);
      files.use(NAME, (disk) => disk.disk.writeZeroes(65536, size - 65536, { unmap: true }));
      expect(files.stored(NAME)).toBeLessThan(8 * 65536);
      await files.expectClean(NAME);
      files.use(NAME, (disk) => {
        disk.disk.writeZeroes(0, size, { unmap: true });
        expectBytes(disk.read(), Buffer.alloc(size));
      });
      const { allocatedClusters } = await files.expectClean(NAME);
      expect(allocatedClusters).toBe(0);
    });
  });

  it("are sub-clusters where an image has them", async () => {
    await withDiskFiles(async (files) => {
      const size = 4 * 16384;
      const data = new Random("sub-clusters").bytes(size);
      files.put(NAME, qcow2Bytes({ clusterBits: 14, extendedL2: true, virtualSize: size }));
      files.use(NAME, (disk) => {
        disk.write(0, data);
        disk.disk.writeZeroes(16384 + 512, 1024, { unmap: true });
        disk.fill(3 * 16384 - 512, 512, 0);
        // Less than a sub-cluster, of data: written.
        disk.fill(5, 100, 0);
      });
      await files.expectClean(NAME);
      data
        .fill(0, 16384 + 512, 16384 + 1536)
        .fill(0, 3 * 16384 - 512, 3 * 16384)
        .fill(0, 5, 105);
      expectBytes(await files.converted(NAME), data);
      const letters = await files.clusters(NAME, 512);
      const zeros = [...letters].flatMap((letter, index) => (letter === "D" ? [] : [index]));
      expect(zeros).toEqual([33, 34, 95]);
    });
  });

  it("cost no more than tables, however large they are", async () => {
    await withDiskFiles(async (files) => {
      // 64 TiB.
      const size = 2 ** 46;
      files.put(NAME, qcow2Bytes({ clusterBits: 21, virtualSize: size }));
      files.use(NAME, (disk) => {
        disk.fill(2 ** 40 + 5, 100, 3);
        disk.disk.writeZeroes(0, size, { unmap: true });
        disk.disk.writeZeroes(1, size - 2, { unmap: true });
        disk.disk.writeZeroes(0, size, { unmap: false });
        expectBytes(disk.read(2 ** 40, 4096), Buffer.alloc(4096));
      });
      const { allocatedClusters } = await files.expectClean(NAME);
      expect(allocatedClusters).toBe(0);
      expect(files.stored(NAME)).toBeLessThan(32 * 1024 * 1024);
    });
  });
});

describe("space that is set aside", () => {
  it("is a place on the host that reads as before", async () => {
    const clusters = await clustersAfter({ before: ".zZD...." }, (disk) => {
      const before = disk.read();
      disk.disk.preallocate(CLUSTER - 1, 3 * CLUSTER + 2);
      expectBytes(disk.read(), before);
      disk.disk.preallocate(8 * CLUSTER - 513, 1);
      expectBytes(disk.read(), before);
    });
    expect(clusters).toMatch(/^[DZ][DZ][DZ]D[DZ]\.\.[DZ]$/);
  });

  it("holds what the backing file had", async () => {
    const clusters = await clustersAfter({ before: "........", options: OVER }, (disk) => {
      disk.disk.preallocate(0, 2 * CLUSTER);
      disk.disk.preallocate(7 * CLUSTER + 7, 1);
      expectBytes(disk.read(), backing.subarray(0, 8 * CLUSTER - 512));
    });
    expect(clusters).toBe("DDdddddD");
  });
});
