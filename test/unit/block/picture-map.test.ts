/** Pictures' maps of images that are laid out by hand: what each cluster is, on the disk and in the file. */

import { describe, expect, it } from "vitest";
import { BackingChain } from "../../../src/block/backing-chain.ts";
import { CELL_CLASSES, type PictureCells } from "../../../src/block/picture-cells.ts";
import { readPictureMap } from "../../../src/block/picture-map.ts";
import type { FormatImage } from "../../../src/formats/driver.ts";
import { RawImage } from "../../../src/formats/raw/raw-image.ts";
import { deflate } from "../../support/compressed-stream-builder.ts";
import { buildQcow2, type Qcow2Image, type Qcow2Options } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { buildQed } from "../../support/qed-builder.ts";
import { openQcow2, openQed } from "../formats/open-image.ts";
import { MemoryStorage } from "../memory-storage.ts";

const CLUSTER = 512;
const bytes = Buffer.alloc(CLUSTER, 1);

function mapOf(...images: [FormatImage, ...FormatImage[]]) {
  return readPictureMap(new BackingChain(images), 4096);
}

/** One word for each cell; all classes that are in it. */
function wordsOf(cells: PictureCells): string[] {
  return Array.from({ length: cells.count }, (_, cell) =>
    CELL_CLASSES.filter((cellClass) => cells.bytesAt(cell, cellClass) > 0).join("+"),
  );
}

function expectSums(cells: PictureCells): void {
  const sums = CELL_CLASSES.map((cellClass) => cells.sum(cellClass));
  expect(sums.reduce((a, b) => a + b)).toBe(cells.length);
}

/** The clusters of a region of a built image, by its name. */
function clustersOf(image: Qcow2Image, name: string): number[] {
  const { offset, length } = image.region(name);
  const first = Math.floor(offset / CLUSTER);
  const end = Math.ceil((offset + length) / CLUSTER);
  return Array.from({ length: end - first }, (_, index) => first + index);
}

const OPTIONS: Qcow2Options = {
  clusterBits: 9,
  virtualSize: 10 * CLUSTER,
  clusters: {
    0: { kind: "data", bytes },
    1: { kind: "zero" },
    2: { kind: "compressed", stream: deflate(bytes) },
    3: { kind: "zero-preallocated", bytes },
    5: { kind: "data", bytes },
  },
};

describe("the map of a qcow2 image", () => {
  it("says what each cluster is, on the disk and in the file", () => {
    const built = buildQcow2(OPTIONS);
    const map = mapOf(openQcow2(built.bytes));
    expect(wordsOf(map.disk)).toEqual([
      ..."data zero compressed zero unallocated data".split(" "),
      ...new Array(4).fill("unallocated"),
    ]);
    const words = wordsOf(map.file);
    for (const { name } of built.regions) {
      const wanted = /^data [05]$/.test(name)
        ? "data"
        : name === "data 3"
          ? "zero"
          : name.startsWith("compressed")
            ? "compressed"
            : "metadata";
      for (const cluster of clustersOf(built, name)) expect(words[cluster], name).toBe(wanted);
    }
    expect(words).not.toContain("free");
    expectSums(map.disk);
    expectSums(map.file);
  });

  it("tells leaked clusters, free ones and holes", () => {
    const built = buildQcow2(OPTIONS);
    const clusters = built.bytes.length / CLUSTER;
    built.setRefcount(clusters + 1, 1);
    const file = Buffer.concat([built.bytes, Buffer.alloc(4 * CLUSTER)]);
    const image = openQcow2(file.subarray(0, file.length - 100));
    const storage = image.storage;
    if (!(storage instanceof MemoryStorage)) expect.fail("not in memory");
    const [data] = clustersOf(built, "data 5");
    const [l1] = clustersOf(built, "l1");
    storage.holes = [data ?? 0, l1 ?? 0, clusters + 3].map(
      (cluster) => [cluster * CLUSTER, (cluster + 1) * CLUSTER] as const,
    );
    const map = mapOf(image);
    const words = wordsOf(map.file);
    expect(words.slice(clusters)).toEqual(["free", "leaked", "free", "hole"]);
    expect(words[data ?? 0]).toBe("hole");
    expect(words[l1 ?? 0]).toBe("metadata");
    expect(map.file.sum("hole")).toBe(2 * CLUSTER - 100);
    expectSums(map.file);
  });

  it("tells what only a snapshot refers to, and counts shared clusters once", () => {
    const shared = buildQcow2({ ...OPTIONS, snapshots: [{}, {}] });
    const sharedMap = mapOf(openQcow2(shared.bytes));
    expect(sharedMap.file.sum("snapshot")).toBe(0);
    expect(sharedMap.file.sum("data")).toBe(2 * CLUSTER);
    const own = buildQcow2({
      ...OPTIONS,
      snapshots: [{ clusters: { 0: { kind: "data", bytes }, 7: { kind: "data", bytes } } }],
    });
    const ownMap = mapOf(openQcow2(own.bytes));
    expect(ownMap.file.sum("snapshot")).toBe(2 * CLUSTER);
    const words = wordsOf(ownMap.file);
    for (const name of ["snapshot 0 data 0", "snapshot 0 data 7"]) {
      for (const cluster of clustersOf(own, name)) expect(words[cluster]).toBe("snapshot");
    }
    for (const name of ["snapshot 0 l1", "snapshot 0 l2 0", "snapshot table"]) {
      for (const cluster of clustersOf(own, name)) expect(words[cluster]).toBe("metadata");
    }
    expectSums(ownMap.file);
  });

  it("tells what is from a backing file, also where that is zeros or ends", () => {
    const top = buildQcow2({ ...OPTIONS, clusters: { 1: { kind: "data", bytes } } });
    const below = buildQcow2({
      clusterBits: 9,
      virtualSize: 6 * CLUSTER,
      clusters: { 0: { kind: "data", bytes }, 1: { kind: "data", bytes }, 3: { kind: "zero" } },
    });
    const map = mapOf(openQcow2(top.bytes), openQcow2(below.bytes));
    expect(wordsOf(map.disk)).toEqual([
      ..."backing data unallocated backing".split(" "),
      ...new Array(6).fill("unallocated"),
    ]);
    expect(map.file.sum("data")).toBe(CLUSTER);
  });

  it("has a map of its own for an external data file", () => {
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: 4 * CLUSTER,
      dataFile: "disk.data",
      clusters: { 0: { kind: "data", bytes }, 2: { kind: "data", bytes } },
    });
    const map = mapOf(openQcow2(built.bytes, built.dataFile));
    expect(new Set(wordsOf(map.file))).toEqual(new Set(["metadata"]));
    expect(map.dataFile === undefined ? [] : wordsOf(map.dataFile)).toEqual(
      "data free data free".split(" "),
    );
  });

  it("counts where the order of the file is another than that of the disk", () => {
    const kinds = (order: readonly number[]) => {
      const clusters: Record<number, Qcow2Cluster> = {};
      for (const guest of order) clusters[guest] = { kind: "data", bytes };
      return buildQcow2({ ...OPTIONS, clusters });
    };
    const inOrder = mapOf(openQcow2(kinds([0, 1, 2, 5, 6]).bytes));
    expect(inOrder.disk.breaks()).toBe(0);
    const built = kinds([0, 1, 2, 3]);
    // The second and the third cluster of the disk change places: 0 2 1 3.
    const [second, third] = [built.getL2(1), built.getL2(2)];
    built.setL2(1, third).setL2(2, second);
    const { disk, file } = mapOf(openQcow2(built.bytes));
    expect([0, 1, 2, 3].map((cell) => disk.fragmentation(cell))).toEqual([0, 1, 1, 1]);
    expect(file.breaks()).toBe(3);
    const places = [1, 2, 3].flatMap((guest) => clustersOf(built, `data ${guest}`));
    expect(places.map((cell) => file.fragmentation(cell))).toEqual([1, 1, 1]);
  });

  it("keeps within the cells that it may have", () => {
    const built = buildQcow2(OPTIONS);
    const map = readPictureMap(new BackingChain([openQcow2(built.bytes)]), 3);
    expect(map.disk.count).toBe(3);
    expect(map.disk.cellSize).toBe(4 * CLUSTER);
    expect(map.file.count).toBeLessThanOrEqual(3);
    expect(map.disk.bytesAt(0, "zero")).toBe(2 * CLUSTER);
    expectSums(map.disk);
    expectSums(map.file);
  });
});

describe("the map of a QED image", () => {
  it("says what each cluster is", () => {
    const size = 4096;
    const built = buildQed({
      clusterSize: size,
      tableClusters: 2,
      virtualSize: 6 * size,
      clusters: { 0: { kind: "data", bytes }, 2: { kind: "zero" }, 4: { kind: "data", bytes } },
    });
    const map = mapOf(openQed(Buffer.concat([built.bytes, Buffer.alloc(2 * size)])));
    expect(wordsOf(map.disk)).toEqual(
      "data unallocated zero unallocated data unallocated".split(" "),
    );
    const words = wordsOf(map.file);
    for (const { name, offset, length } of built.regions) {
      const wanted = name.startsWith("data") ? "data" : "metadata";
      const end = Math.ceil((offset + length) / size);
      for (let cluster = Math.floor(offset / size); cluster < end; cluster++) {
        expect(words[cluster], name).toBe(wanted);
      }
    }
    expect(words.slice(-2)).toEqual(["leaked", "leaked"]);
    expectSums(map.file);
  });
});

describe("the map of a raw image", () => {
  it("has data and holes, the same on the disk and in the file", () => {
    const storage = new MemoryStorage("disk.raw", Buffer.alloc(5 * 4096 - 512, 1));
    storage.holes = [[4096, 2 * 4096 + 1024]];
    const map = mapOf(new RawImage(storage));
    expect(wordsOf(map.disk)).toEqual("data hole data+hole data data".split(" "));
    expect(wordsOf(map.file)).toEqual(wordsOf(map.disk));
    expect(map.file.sum("hole")).toBe(4096 + 1024);
    expect(map.disk.breaks()).toBe(0);
    expectSums(map.disk);
    expectSums(map.file);
  });

  it("may have no bytes at all", () => {
    const map = mapOf(new RawImage(new MemoryStorage("disk.raw", Buffer.alloc(0))));
    expect(map.disk.count).toBe(0);
    expect(map.file.count).toBe(0);
  });
});
