/** Where metadata is, against a set of numbers and the layout that the image was built with. */

import { describe, expect, it } from "vitest";
import { createMetadataSet } from "../../../src/formats/metadata-map.ts";
import {
  createSharedSnapshotTable,
  SharedSnapshotTable,
} from "../../../src/formats/qcow2/snapshots/shared-snapshot-table.ts";
import {
  metadataRanges,
  qcow2MetadataMap,
} from "../../../src/formats/qcow2/writer/metadata-ranges.ts";
import { NUMBER } from "../../../src/formats/qcow2/writer/shared-state.ts";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { writerState } from "./qcow2/writer/writer-state.ts";

/** Clusters of the largest files that a Number can address, with clusters of 512 bytes. */
const CLUSTER_MAX = 2 ** 44 - 1;

/** What multiplies a number to 1 with 2^32 divided by the golden ratio, modulo 2^32: a usual hash of numbers. */
const GOLDEN_INVERSE = 0x0e8b_2f51;

/** The places of a set, behind the count and the seed. */
function placesOf(memory: SharedArrayBuffer): Float64Array {
  return new Float64Array(memory).subarray(2);
}

/** The most places in a row that are taken: so many are looked at to find one. */
function longestRun(places: Float64Array): number {
  let longest = 0;
  let run = 0;
  for (const place of places) {
    run = place === 0 ? 0 : run + 1;
    longest = Math.max(longest, run);
  }
  return longest;
}

describe("MetadataMap", () => {
  it("notes clusters once", () => {
    const map = qcow2MetadataMap(createMetadataSet(10));
    for (const cluster of [0, 1, 2 ** 32, 2 ** 32 - 1, CLUSTER_MAX]) {
      expect(map.overlap(cluster, 1)).toBeUndefined();
      expect(map.add(cluster)).toBe(true);
      expect(map.overlap(cluster, 1)).toBe("an L2 table or refcount block");
      expect(map.add(cluster)).toBe(false);
    }
    // Clusters whose numbers agree in the lower 32 bits are others.
    expect(map.overlap(2 ** 33, 1)).toBeUndefined();
    expect(map.overlap(2 ** 32 + 1, 1)).toBeUndefined();
  });

  it("is shared by all threads", () => {
    const memory = createMetadataSet(10);
    const [one, other] = [qcow2MetadataMap(memory), qcow2MetadataMap(memory)];
    one.add(77);
    expect(other.overlap(70, 8)).toBeDefined();
    expect(other.add(77)).toBe(false);
    other.remove(77);
    expect(one.overlap(70, 8)).toBeUndefined();
  });

  it.each([
    { label: "scattered", draw: (random: Random) => random.below(CLUSTER_MAX) },
    { label: "close to each other", draw: (random: Random) => random.below(3000) },
    {
      label: "the same but for the upper bits",
      draw: (random: Random) => random.below(1000) * 2 ** 32,
    },
    { label: "multiples of 2^20", draw: (random: Random) => random.below(1000) * 2 ** 20 },
  ])("does what a set does for clusters that are $label", ({ label, draw }) => {
    const random = new Random(`metadata map ${label}`);
    const memory = createMetadataSet(300);
    const map = qcow2MetadataMap(memory);
    const model = new Set<number>();
    for (let step = 0; step < byScale(5000, 100_000); step++) {
      const cluster = draw(random);
      if (model.size < 300 && random.below(2) === 0) {
        if (map.add(cluster) === model.has(cluster)) expect.fail(`add ${cluster}`);
        model.add(cluster);
      } else if (random.below(2) === 0) {
        const [some = cluster] = model;
        const removed = random.pick([cluster, some]);
        map.remove(removed);
        model.delete(removed);
      }
      const asked = draw(random);
      const count = random.between(1, 5);
      const isThere = Array.from({ length: count }, (_, index) => asked + index).some((one) =>
        model.has(one),
      );
      if ((map.overlap(asked, count) !== undefined) !== isThere) expect.fail(`overlap ${asked}`);
    }
    expect(new Float64Array(memory)[0]).toBe(model.size);
    for (const cluster of model) map.remove(cluster);
    expect(placesOf(memory).every((word) => word === 0)).toBe(true);
  });

  it.each([
    ["one after the other", (index: number) => index],
    [
      "with the same hash, if it is a usual one",
      (index: number) => Math.imul(index, GOLDEN_INVERSE) >>> 0,
    ],
    ["the same but for the upper bits", (index: number) => 77 + (index % 4096) * 2 ** 32 + index],
  ])("finds clusters soon that an image has chosen: %s", (_, clusterOf) => {
    const count = 20_000;
    const memory = createMetadataSet(count);
    const map = qcow2MetadataMap(memory);
    for (let index = 0; index < count; index++) map.add(clusterOf(index));
    expect(longestRun(placesOf(memory))).toBeLessThan(1000);
  });

  it("takes no more than it has room for, and still answers", () => {
    const map = qcow2MetadataMap(createMetadataSet(0));
    const clusters = Array.from({ length: 5000 }, (_, index) => index * 3);
    for (const cluster of clusters) expect(map.add(cluster)).toBe(true);
    const known = clusters.filter((cluster) => map.overlap(cluster, 1) !== undefined);
    expect(known.length).toBeGreaterThan(100);
    expect(known).toEqual(clusters.slice(0, known.length));
    expect(map.overlap(1, 2)).toBeUndefined();
    for (const cluster of clusters) map.remove(cluster);
    expect(map.overlap(0, 20_000)).toBeUndefined();
  });
});

describe("MetadataMap.overlapOfRanges", () => {
  const map = qcow2MetadataMap(createMetadataSet(10));
  map.ranges = [
    { name: "the header", firstCluster: 0, clusters: 1 },
    { name: "the L1 table", firstCluster: 10, clusters: 3 },
  ];
  map.add(30);

  it.each([
    { first: 0, count: 1, found: "the header" },
    { first: 1, count: 9, found: undefined },
    { first: 1, count: 10, found: "the L1 table" },
    { first: 12, count: 1, found: "the L1 table" },
    { first: 13, count: 1, found: undefined },
    { first: 5, count: 100, found: "the L1 table" },
    { first: 13, count: 10, found: undefined },
    { first: 30, count: 1, found: undefined },
  ])("finds $found in $count clusters from $first on", ({ first, count, found }) => {
    expect(map.overlapOfRanges(first, count)).toBe(found);
    const isTable = first <= 30 && 30 < first + count;
    expect(map.overlap(first, count)).toBe(
      found ?? (isTable ? "an L2 table or refcount block" : undefined),
    );
  });
});

describe("metadataRanges", () => {
  it("are where the image has its tables, and follow them", () => {
    const { built, layout, state } = writerState({
      clusterBits: 9,
      virtualSize: 8 * 1024 * 1024,
      snapshots: [{ name: "one" }, { name: "two" }],
    });
    const clustersOf = (name: string) => {
      const { offset, length } = built.region(name);
      return { firstCluster: offset / 512, clusters: length / 512 };
    };
    expect(
      metadataRanges(layout, state, new SharedSnapshotTable(createSharedSnapshotTable(layout))),
    ).toEqual([
      { name: "the header", firstCluster: 0, clusters: 1 },
      { name: "the L1 table", ...clustersOf("l1") },
      { name: "the refcount table", ...clustersOf("refcount table") },
      { name: "the snapshot table", ...clustersOf("snapshot table") },
    ]);
    state.set(NUMBER.l1Offset, 512 * 1000);
    state.set(NUMBER.l1Size, 65);
    state.set(NUMBER.refcountTableOffset, 512 * 2000);
    state.set(NUMBER.refcountTableClusters, 7);
    expect(
      metadataRanges(layout, state, new SharedSnapshotTable(createSharedSnapshotTable(layout))),
    ).toMatchObject([
      {},
      { firstCluster: 1000, clusters: 2 },
      { firstCluster: 2000, clusters: 7 },
      {},
    ]);
  });

  it("have no snapshot table where there are no snapshots", () => {
    const { layout, state } = writerState();
    expect(
      metadataRanges(layout, state, new SharedSnapshotTable(createSharedSnapshotTable(layout))).map(
        ({ name }) => name,
      ),
    ).toEqual(["the header", "the L1 table", "the refcount table"]);
  });
});
