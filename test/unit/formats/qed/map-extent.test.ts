/** Mapping through QED tables that are laid out by hand. */

import { describe, expect, it } from "vitest";
import {
  buildQed,
  type QedCluster,
  type QedImage,
  qedBytes,
} from "../../../support/qed-builder.ts";
import { Random } from "../../../support/random.ts";
import { extentAt, extentsOf, openQed } from "../open-image.ts";

/** Clusters of 4 KiB and tables of one cluster: 512 entries, which map 2 MiB. */
const CLUSTER = 4096;
const L2_COVERAGE = 512 * CLUSTER;

const DATA: QedCluster = { kind: "data", bytes: Uint8Array.of(1) };
const ZERO: QedCluster = { kind: "zero" };

function build(clusters: Record<number, QedCluster>, virtualSize = 3 * L2_COVERAGE): QedImage {
  return buildQed({ clusterSize: CLUSTER, tableClusters: 1, virtualSize, clusters });
}

describe("mapExtent of QED", () => {
  it("finds an empty disk unallocated, in one extent across all L2 tables", () => {
    const image = openQed(
      qedBytes({ clusterSize: CLUSTER, tableClusters: 1, virtualSize: 9_000_448 }),
    );
    expect(extentAt(image, 0)).toMatchObject({ kind: "unallocated", length: 9_000_448, host: -1 });
    expect(extentAt(image, 9_000_000)).toMatchObject({ length: 448 });
  });

  it("tells the kinds of clusters apart", () => {
    const built = build({ 1: DATA, 2: ZERO, 3: ZERO, 512: DATA });
    expect(extentsOf(openQed(built.bytes))).toEqual([
      { kind: "unallocated", start: 0, length: CLUSTER, host: -1 },
      { kind: "data", start: CLUSTER, length: CLUSTER, host: built.region("data 1").offset },
      { kind: "zero", start: 2 * CLUSTER, length: 2 * CLUSTER, host: -1 },
      { kind: "unallocated", start: 4 * CLUSTER, length: L2_COVERAGE - 4 * CLUSTER, host: -1 },
      { kind: "data", start: L2_COVERAGE, length: CLUSTER, host: built.region("data 512").offset },
      {
        kind: "unallocated",
        start: L2_COVERAGE + CLUSTER,
        length: 2 * L2_COVERAGE - CLUSTER,
        host: -1,
      },
    ]);
  });

  it("joins clusters that continue on the host, and only these", () => {
    const built = build({ 0: DATA, 1: DATA, 2: DATA });
    const first = built.region("data 0").offset;
    expect(extentAt(openQed(built.bytes), 100, 10_000)).toMatchObject({
      length: 10_000,
      host: first + 100,
    });
    expect(extentAt(openQed(built.bytes), 0)).toMatchObject({ length: 3 * CLUSTER });
    built.setL2(1, first);
    expect(extentAt(openQed(built.bytes), 0)).toMatchObject({ length: CLUSTER, host: first });
  });

  it("reads an entry of the second table slice right", () => {
    // A table of 4 clusters has 2048 entries, of which a slice holds 512.
    const built = buildQed({
      clusterSize: CLUSTER,
      tableClusters: 4,
      virtualSize: 2048 * CLUSTER,
      clusters: { 511: DATA, 512: DATA, 2047: DATA },
    });
    const data = extentsOf(openQed(built.bytes)).filter(({ kind }) => kind === "data");
    expect(data).toEqual([
      {
        kind: "data",
        start: 511 * CLUSTER,
        length: 2 * CLUSTER,
        host: built.region("data 511").offset,
      },
      {
        kind: "data",
        start: 2047 * CLUSTER,
        length: CLUSTER,
        host: built.region("data 2047").offset,
      },
    ]);
  });

  it("maps what a walk over the clusters maps", () => {
    const random = new Random("QED mapExtent");
    const clusters: Record<number, QedCluster> = {};
    for (let cluster = 0; cluster < 1100; cluster++) {
      const kind = random.pick([DATA, DATA, ZERO, undefined]);
      if (kind !== undefined) clusters[cluster] = kind;
    }
    const built = build(clusters);
    const image = openQed(built.bytes);
    const offsets = new Map(built.regions.map(({ name, offset }) => [name, offset]));
    for (let round = 0; round < 2000; round++) {
      const start = random.below(1100 * CLUSTER);
      const extent = extentAt(image, start, 1 + random.below(8 * CLUSTER));
      for (const at of [start, start + extent.length - 1]) {
        const cluster = Math.floor(at / CLUSTER);
        const kind = clusters[cluster]?.kind ?? "unallocated";
        expect(extent.kind).toBe(kind);
        const host = offsets.get(`data ${cluster}`) ?? Number.NaN;
        const expected = kind === "data" ? host + (at % CLUSTER) - (at - start) : -1;
        expect(extent.host).toBe(expected);
      }
    }
  });
});

describe("faults of QED tables", () => {
  const expectFault = (built: QedImage, at: number, reason: RegExp): void => {
    const image = openQed(built.bytes);
    expect(() => extentAt(image, at, 1)).toThrow(
      expect.objectContaining({
        name: "CorruptionError",
        code: "EIO",
        message: expect.stringMatching(reason),
      }),
    );
  };

  it.each([
    ["on no cluster boundary", 0x2200],
    ["1, the zero cluster of L2 tables", 1],
    ["in the header", 0x1_0000_0000_0000],
    ["past the end of the file", 0x10_0000],
    ["above 2^53", 2n ** 53n],
    ["with bit 63", 2n ** 63n],
  ])("refuse an L2 table %s", (_where, entry) => {
    expectFault(
      build({ 0: DATA }).setL1(0, entry),
      0,
      /L2 table offset 0x[0-9a-f]+ \(L1 entry 0\) is not a multiple/,
    );
  });

  it("refuse an L2 table that overlaps the header, or the end of the file", () => {
    const built = buildQed({
      clusterSize: CLUSTER,
      tableClusters: 4,
      headerClusters: 2,
      clusters: { 0: DATA },
    });
    expectFault(built.setL1(0, CLUSTER), 0, /within 0x2000\.\.0x7000/);
    expectFault(built.setL1(0, built.bytes.length - 3 * CLUSTER), 0, /within 0x2000\.\.0x7000/);
    built.setL1(0, built.bytes.length - 4 * CLUSTER);
    expect(() => extentAt(openQed(built.bytes), 0, 1)).not.toThrow();
  });

  it.each([2, 0x2001, 0x2200, 0x10_0000, 2n ** 53n, 2n ** 64n - 4096n])(
    "refuse a cluster at %i",
    (entry) => {
      const built = build({ 0: DATA, 1: DATA }).setL2(1, entry);
      expectFault(
        built,
        CLUSTER,
        /cluster offset 0x[0-9a-f]+ \(L2 entry 1 at 0x[0-9a-f]+\) is not a multiple/,
      );
      // Whoever does not read that far is not concerned.
      expect(extentAt(openQed(built.bytes), 0)).toMatchObject({ kind: "data", length: CLUSTER });
    },
  );

  it("refuse a cluster that the file has only a part of", () => {
    const built = build({ 0: DATA, 1: DATA });
    const image = openQed(built.bytes.subarray(0, built.bytes.length - 512));
    expect(extentAt(image, 0)).toMatchObject({ kind: "data", length: CLUSTER });
    expect(() => extentAt(image, CLUSTER, 1)).toThrow(/cluster offset/);
  });
});
