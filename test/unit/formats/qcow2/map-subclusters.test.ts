/** Mapping through extended L2 entries, whose bitmaps are laid out by hand. */

import { describe, expect, it } from "vitest";
import { buildQcow2, type Qcow2Image } from "../../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../../support/qcow2-tree-builder.ts";
import { Random } from "../../../support/random.ts";
import { extentAt, extentsOf, openQcow2 } from "../open-image.ts";

/** Clusters of 16 KiB: 32 sub-clusters of 512 bytes. */
const CLUSTER = 16384;
const SUB = 512;

function build(clusters: Record<number, Qcow2Cluster>): Qcow2Image {
  return buildQcow2({ clusterBits: 14, extendedL2: true, virtualSize: 8 * CLUSTER, clusters });
}

const subclusters = (allocated: number, zero: number): Qcow2Cluster => ({
  kind: "subclusters",
  bytes: Uint8Array.of(1),
  allocated,
  zero,
});

describe("mapExtent with sub-clusters", () => {
  it("finds runs of data, zeros and what is below, all with the host offset", () => {
    // Sub-clusters 0 and 31 allocated, 1 to 3 zero.
    const built = build({ 0: subclusters(0x8000_0001, 0x0000_000e) });
    const host = built.region("data 0").offset;
    expect(extentsOf(openQcow2(built.bytes)).slice(0, 4)).toEqual([
      { kind: "data", start: 0, length: SUB, host },
      { kind: "zero", start: SUB, length: 3 * SUB, host: host + SUB },
      { kind: "unallocated", start: 4 * SUB, length: 27 * SUB, host: host + 4 * SUB },
      { kind: "data", start: 31 * SUB, length: SUB, host: host + 31 * SUB },
    ]);
  });

  it("starts within a sub-cluster and ends where it is told to", () => {
    const built = build({ 2: subclusters(0x0000_00ff, 0) });
    const image = openQcow2(built.bytes);
    const host = built.region("data 2").offset;
    expect(extentAt(image, 2 * CLUSTER + 100)).toEqual({
      kind: "data",
      start: 2 * CLUSTER + 100,
      length: 8 * SUB - 100,
      host: host + 100,
    });
    expect(extentAt(image, 2 * CLUSTER + 100, 7)).toMatchObject({ length: 7 });
  });

  it("knows zeros without a host cluster", () => {
    const built = build({ 0: { kind: "zero" }, 1: { kind: "entry", entry: 0, bitmap: 1n << 32n } });
    const [first, second] = extentsOf(openQcow2(built.bytes));
    expect(first).toEqual({ kind: "zero", start: 0, length: CLUSTER + SUB, host: -1 });
    expect(second).toMatchObject({ kind: "unallocated", start: CLUSTER + SUB, host: -1 });
  });

  it("takes bit 0 of the first word for reserved, not for the zero flag", () => {
    const built = build({ 0: subclusters(0xffff_ffff, 0) });
    built.setL2(0, built.getL2(0) | 1n, 0xffff_ffffn);
    expect(extentAt(openQcow2(built.bytes), 0)).toMatchObject({ kind: "data", length: CLUSTER });
  });

  it("maps any bitmap as a walk over its bits does", () => {
    const random = new Random("sub-clusters");
    const clusters: Record<number, Qcow2Cluster> = {};
    const bitmaps: [allocated: number, zero: number][] = [];
    for (let cluster = 0; cluster < 8; cluster++) {
      const allocated = random.u32();
      const zero = (random.u32() & ~allocated) >>> 0;
      bitmaps.push([allocated, zero]);
      clusters[cluster] = subclusters(allocated, zero);
    }
    const built = build(clusters);
    const image = openQcow2(built.bytes);
    const slowKind = (index: number): string => {
      const [allocated = 0, zero = 0] = bitmaps[Math.floor(index / 32)] ?? [];
      const bit = 2 ** (index % 32);
      if (Math.floor(zero / bit) % 2 === 1) return "zero";
      return Math.floor(allocated / bit) % 2 === 1 ? "data" : "unallocated";
    };
    for (let index = 0; index < 8 * 32; index++) {
      const extent = extentAt(image, index * SUB);
      expect(extent.kind).toBe(slowKind(index));
      const host = built.region(`data ${Math.floor(index / 32)}`).offset;
      expect(extent.host).toBe(host + (index % 32) * SUB);
      const count = extent.length / SUB;
      for (let next = index; next < index + count; next++) expect(slowKind(next)).toBe(extent.kind);
    }
  });

  it.each([
    ["a sub-cluster both allocated and zero", 0x8000_0000, 0x8000_0000],
    ["sub-clusters all allocated and zero", 0xffff_ffff, 0xffff_ffff],
  ])("refuses %s", (_what, allocated, zero) => {
    const built = build({ 1: subclusters(allocated, zero) });
    const image = openQcow2(built.bytes);
    expect(() => extentAt(image, CLUSTER)).toThrow(
      new RegExp(
        `L2 entry at 0x${built.l2EntryOffset(1).toString(16)}, .* sub-cluster bitmap contradicts`,
      ),
    );
    expect(extentAt(image, 0).kind).toBe("unallocated");
  });

  it("refuses allocated sub-clusters without a host cluster", () => {
    const built = build({ 0: { kind: "entry", entry: 0, bitmap: 1 } });
    expect(() => extentAt(openQcow2(built.bytes), 0)).toThrow(/sub-cluster bitmap contradicts/);
  });

  it("knows compressed clusters, one at a time", () => {
    const stream = new Random("compressed sub-clusters").bytes(300);
    const built = build({ 0: { kind: "compressed", stream }, 1: { kind: "compressed", stream } });
    const image = openQcow2(built.bytes);
    expect(extentAt(image, 100)).toMatchObject({
      kind: "compressed",
      length: CLUSTER - 100,
      host: built.region("compressed 0").offset,
    });
    expect(extentAt(image, CLUSTER)).toMatchObject({
      kind: "compressed",
      length: CLUSTER,
      host: built.region("compressed 1").offset,
    });
  });

  it("reads an entry of the second table slice right", () => {
    // A slice of 4096 bytes holds 256 extended entries; an L2 table of 16 KiB has 1024.
    const clusters: Record<number, Qcow2Cluster> = {
      255: subclusters(1, 0),
      256: subclusters(2, 0),
    };
    const built = buildQcow2({
      clusterBits: 14,
      extendedL2: true,
      virtualSize: 300 * CLUSTER,
      clusters,
    });
    const image = openQcow2(built.bytes);
    const data = extentsOf(image).filter(({ kind }) => kind === "data");
    expect(data).toEqual([
      { kind: "data", start: 255 * CLUSTER, length: SUB, host: built.region("data 255").offset },
      {
        kind: "data",
        start: 256 * CLUSTER + SUB,
        length: SUB,
        host: built.region("data 256").offset + SUB,
      },
    ]);
  });
});
