/** Mapping through standard L1 and L2 tables that are laid out by hand. */

import { describe, expect, it } from "vitest";
import { buildQcow2, type Qcow2Options, qcow2Bytes } from "../../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../../support/qcow2-tree-builder.ts";
import { Random } from "../../../support/random.ts";
import { extentAt, extentsOf, openQcow2 } from "../open-image.ts";

/** Clusters of 512 bytes: an L2 table has 64 entries and maps 32 KiB. */
const CLUSTER = 512;
const L2_COVERAGE = 64 * CLUSTER;
const COPIED = 1n << 63n;

const DATA: Qcow2Cluster = { kind: "data", bytes: Uint8Array.of(1) };
const ZERO: Qcow2Cluster = { kind: "zero" };
const PREALLOCATED: Qcow2Cluster = { kind: "zero-preallocated", bytes: Uint8Array.of(2) };

function small(
  clusters: Record<number, Qcow2Cluster>,
  options: Qcow2Options = {},
): ReturnType<typeof buildQcow2> {
  return buildQcow2({ clusterBits: 9, virtualSize: 3 * L2_COVERAGE, clusters, ...options });
}

describe("mapExtent of qcow2", () => {
  it("finds an empty disk unallocated, in one extent across all L2 tables", () => {
    const image = openQcow2(qcow2Bytes({ clusterBits: 9, virtualSize: 1_000_448 }));
    expect(extentAt(image, 0)).toMatchObject({ kind: "unallocated", length: 1_000_448, host: -1 });
    expect(extentAt(image, 999_999)).toMatchObject({ length: 449 });
  });

  it("tells the kinds of clusters apart", () => {
    const built = small({ 1: DATA, 3: ZERO, 5: PREALLOCATED });
    const image = openQcow2(built.bytes);
    const at = (cluster: number): number => built.region(`data ${cluster}`).offset;
    expect(extentsOf(image)).toEqual([
      { kind: "unallocated", start: 0, length: CLUSTER, host: -1 },
      { kind: "data", start: CLUSTER, length: CLUSTER, host: at(1) },
      { kind: "unallocated", start: 2 * CLUSTER, length: CLUSTER, host: -1 },
      { kind: "zero", start: 3 * CLUSTER, length: CLUSTER, host: -1 },
      { kind: "unallocated", start: 4 * CLUSTER, length: CLUSTER, host: -1 },
      { kind: "zero", start: 5 * CLUSTER, length: CLUSTER, host: at(5) },
      { kind: "unallocated", start: 6 * CLUSTER, length: 3 * L2_COVERAGE - 6 * CLUSTER, host: -1 },
    ]);
  });

  it("joins clusters that continue on the host, and only these", () => {
    const built = small({ 0: DATA, 1: DATA, 2: DATA, 3: DATA });
    const first = built.region("data 0").offset;
    expect(extentAt(openQcow2(built.bytes), 0)).toMatchObject({ length: 4 * CLUSTER, host: first });
    built.setL2(2, BigInt(first) | COPIED);
    expect(extentAt(openQcow2(built.bytes), 0)).toMatchObject({ length: 2 * CLUSTER });
    expect(extentAt(openQcow2(built.bytes), 2 * CLUSTER)).toMatchObject({
      length: CLUSTER,
      host: first,
    });
  });

  it("starts within a cluster, and ends at the length that is asked for", () => {
    const built = small({ 0: DATA, 1: DATA });
    const image = openQcow2(built.bytes);
    const first = built.region("data 0").offset;
    expect(extentAt(image, 100, 1)).toEqual({
      kind: "data",
      start: 100,
      length: 1,
      host: first + 100,
    });
    expect(extentAt(image, 511, 3)).toMatchObject({ length: 3, host: first + 511 });
    expect(extentAt(image, 1023, 10_000)).toMatchObject({ length: 1, host: first + 1023 });
    expect(extentAt(image, 5000, 1)).toMatchObject({ kind: "unallocated", length: 1 });
  });

  it("finds the offset within preallocated zeros too", () => {
    const built = small({ 0: PREALLOCATED, 1: PREALLOCATED });
    const host = built.region("data 0").offset;
    expect(extentAt(openQcow2(built.bytes), 700)).toMatchObject({
      kind: "zero",
      length: 324,
      host: host + 700,
    });
  });

  it("ends with the disk, within a cluster", () => {
    const image = openQcow2(
      qcow2Bytes({ clusterBits: 16, virtualSize: 66_048, clusters: { 0: DATA, 1: DATA } }),
    );
    expect(extentsOf(image)).toEqual([
      expect.objectContaining({ kind: "data", start: 0, length: 66_048 }),
    ]);
  });

  it("ignores reserved and COPIED bits of L1 and L2 entries", () => {
    const built = small({ 0: DATA });
    const host = BigInt(built.region("data 0").offset);
    const table = BigInt(built.region("l2 0").offset);
    built.setL1(0, table | 0x7f00_0000_0000_01ffn);
    for (const bits of [0n, COPIED, 0x3f00_0000_0000_01fen]) {
      built.setL2(0, host | bits);
      expect(extentAt(openQcow2(built.bytes), 0, 1)).toMatchObject({
        kind: "data",
        host: Number(host),
      });
    }
    built.setL2(0, COPIED);
    expect(extentAt(openQcow2(built.bytes), 0, 1)).toMatchObject({ kind: "unallocated", host: -1 });
  });

  it("reads L1 entries beyond l1_size as unallocated, even where the table goes on", () => {
    const built = small({ 0: DATA }, { virtualSize: L2_COVERAGE, l1Entries: 1 });
    built.setU64(built.l1EntryOffset(1), 0x123);
    expect(extentAt(openQcow2(built.bytes), CLUSTER)).toMatchObject({ length: 63 * CLUSTER });
  });

  it("maps through an L1 table that is too large to be kept", () => {
    // 2 MiB of L1 table are kept; this one has one entry more.
    const l1Entries = (2 * 1024 * 1024) / 8 + 1;
    const last = l1Entries * 64 - 1;
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: l1Entries * L2_COVERAGE,
      clusters: { 64: DATA, [last]: DATA },
    });
    const image = openQcow2(built.bytes);
    expect(image.layout.l1).toBeUndefined();
    const data = extentsOf(image).filter(({ kind }) => kind === "data");
    expect(data.map(({ start, host }) => [start, host])).toEqual([
      [64 * CLUSTER, built.region("data 64").offset],
      [last * CLUSTER, built.region(`data ${last}`).offset],
    ]);
  });

  it("maps what a byte-by-byte walk of the tables maps", () => {
    const random = new Random("qcow2 mapExtent");
    const clusters: Record<number, Qcow2Cluster> = {};
    for (let cluster = 0; cluster < 3 * 64; cluster++) {
      const kind = random.pick([DATA, DATA, DATA, ZERO, PREALLOCATED, undefined, undefined]);
      if (kind !== undefined) clusters[cluster] = kind;
    }
    const built = small(clusters);
    const image = openQcow2(built.bytes);
    for (let round = 0; round < 2000; round++) {
      const start = random.below(image.virtualSize);
      const extent = extentAt(image, start, 1 + random.below(20 * CLUSTER));
      const slow = (at: number): string => {
        const cluster = Math.floor(at / CLUSTER);
        const kind = clusters[cluster]?.kind;
        if (kind === undefined) return "unallocated";
        if (kind === "zero") return "zero";
        const host = built.region(`data ${cluster}`).offset + (at % CLUSTER) - (at - start);
        return `${kind === "data" ? "data" : "zero"} ${host}`;
      };
      const found = extent.host < 0 ? extent.kind : `${extent.kind} ${extent.host}`;
      for (const at of [start, start + Math.floor(extent.length / 2), start + extent.length - 1]) {
        expect(slow(at)).toBe(found);
      }
    }
  });
});

describe("faults of standard table entries", () => {
  const expectFault = (
    built: ReturnType<typeof buildQcow2>,
    at: number,
    reason: RegExp,
    dataFile?: Uint8Array,
  ): void => {
    const image = openQcow2(built.bytes, dataFile);
    expect(() => extentAt(image, at, 1)).toThrow(
      expect.objectContaining({
        name: "CorruptionError",
        code: "EIO",
        message: expect.stringMatching(reason),
      }),
    );
  };

  it("are reported with the L1 entry: unaligned L2 tables", () => {
    const built = buildQcow2({ clusters: { 0: DATA } }).setL1(0, 0x3_0200);
    expectFault(
      built,
      0,
      /^disk\.qcow2: L2 table offset 0x30200 is not a multiple of the cluster size 0x10000 \(L1 entry 0\)$/,
    );
  });

  it("are reported with the L1 entry: L2 tables above 2^53", () => {
    expectFault(
      small({ 0: DATA }).setL1(0, 2n ** 55n),
      0,
      /L2 table offset is above the limit of 2\^53 - 1/,
    );
  });

  it("are reported with the L2 entry: unaligned data and zero clusters", () => {
    for (const entry of [0x5_0200n, 0x5_0201n]) {
      const built = buildQcow2({ clusters: { 3: DATA } }).setL2(3, entry);
      const at = built.l2EntryOffset(3).toString(16);
      expectFault(
        built,
        3 * 65536,
        new RegExp(`L2 entry at 0x${at}, host offset 0x50200: the host offset is not a multiple`),
      );
    }
  });

  it("are reported with the L2 entry: host offsets above 2^53", () => {
    expectFault(
      small({ 0: DATA }).setL2(0, 2n ** 53n),
      0,
      /the host offset is above the limit of 2\^53 - 1/,
    );
    expectFault(
      small({ 0: DATA }).setL2(0, (1n << 62n) | (1n << 53n)),
      0,
      /above the limit of 2\^53 - 1/,
    );
  });

  it("are reported in version 2 for the zero flag, which it does not have", () => {
    const built = small({ 0: DATA, 1: ZERO }, { version: 2 });
    expectFault(built, CLUSTER, /a zero cluster in a version 2 image/);
    expectFault(
      small({ 0: PREALLOCATED }, { version: 2 }),
      0,
      /a zero cluster in a version 2 image/,
    );
  });

  it("concern only who reads that far", () => {
    const built = small({ 0: DATA, 1: DATA, 2: DATA }, { version: 2 });
    built.setL2(2, built.getL2(2) | 1n);
    const image = openQcow2(built.bytes);
    expect(extentAt(image, 0)).toMatchObject({ kind: "data", length: 2 * CLUSTER });
    expectFault(built, 2 * CLUSTER, /version 2/);
    expect(extentAt(image, 0)).toMatchObject({ kind: "data", length: 2 * CLUSTER });
  });

  it("leave an L2 table past the end of the file as zeros: unallocated", () => {
    const built = small({ 0: DATA }).setL1(0, 2n ** 40n);
    expect(extentAt(openQcow2(built.bytes), 0, 1)).toMatchObject({ kind: "unallocated" });
  });
});

describe("mapping with an external data file", () => {
  const options: Qcow2Options = { clusterBits: 9, virtualSize: 2048, dataFile: "disk.data" };

  it("takes offset 0 with COPIED for data, without it for unallocated", () => {
    const built = buildQcow2({ ...options, clusters: { 0: DATA, 1: DATA } });
    expect(extentAt(openQcow2(built.bytes, built.dataFile), 0)).toEqual({
      kind: "data",
      start: 0,
      length: 1024,
      host: 0,
    });
    built.setL2(0, 0);
    expect(extentAt(openQcow2(built.bytes, built.dataFile), 0)).toMatchObject({
      kind: "unallocated",
      length: CLUSTER,
    });
  });

  it("takes the zero flag over the data", () => {
    const built = buildQcow2({ ...options, clusters: { 0: DATA, 1: DATA } });
    built.setL2(0, COPIED | 1n).setL2(1, COPIED | 512n | 1n);
    const image = openQcow2(built.bytes, built.dataFile);
    expect(extentAt(image, 0, 1).kind).toBe("zero");
    expect(extentAt(image, 512, 1)).toMatchObject({ kind: "zero", host: 512 });
  });

  it("refuses clusters that are elsewhere in it than on the disk", () => {
    const built = buildQcow2({ ...options, clusters: { 1: DATA } });
    for (const entry of [COPIED | 1024n, COPIED]) {
      built.setL2(1, entry);
      const image = openQcow2(built.bytes, built.dataFile);
      expect(() => extentAt(image, 512, 1)).toThrow(
        /the host offset differs from the guest offset/,
      );
    }
  });

  it("refuses compressed clusters", () => {
    const built = buildQcow2({ ...options, clusters: { 1: DATA } }).setL2(1, (1n << 62n) | 512n);
    const image = openQcow2(built.bytes, built.dataFile);
    expect(() => extentAt(image, 512, 1)).toThrow(
      /a compressed cluster in an image with an external/,
    );
  });
});
