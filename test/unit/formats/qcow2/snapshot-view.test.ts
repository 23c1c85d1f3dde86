/** Internal snapshots: the disk as another L1 table maps it. */

import { describe, expect, it } from "vitest";
import { deflate } from "../../../support/compressed-stream-builder.ts";
import { buildQcow2, qcow2Bytes } from "../../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../../support/qcow2-tree-builder.ts";
import { Random } from "../../../support/random.ts";
import { extentAt, extentsOf, openQcow2, readCompressed } from "../open-image.ts";

const CLUSTER = 512;
const L2_COVERAGE = 64 * CLUSTER;
const DATA: Qcow2Cluster = { kind: "data", bytes: Uint8Array.of(1) };

describe("openSnapshot of qcow2", () => {
  it("maps through the snapshot's own tables", () => {
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: 2 * L2_COVERAGE,
      clusters: { 0: DATA },
      snapshots: [{ clusters: { 1: DATA, 64: DATA } }, { clusters: {} }],
    });
    const image = openQcow2(built.bytes);
    const data = (index: number) =>
      extentsOf(image.openSnapshot(index)).filter(({ kind }) => kind === "data");
    expect(data(0)).toEqual([
      {
        kind: "data",
        start: CLUSTER,
        length: CLUSTER,
        host: built.region("snapshot 0 data 1").offset,
      },
      {
        kind: "data",
        start: L2_COVERAGE,
        length: CLUSTER,
        host: built.region("snapshot 0 data 64").offset,
      },
    ]);
    expect(data(1)).toEqual([]);
    expect(extentAt(image, 0, 1).host).toBe(built.region("data 0").offset);
  });

  it("has the snapshot's disk size, smaller or larger than the active one", () => {
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: 2 * L2_COVERAGE,
      clusters: { 0: DATA },
      snapshots: [{ diskSize: 1024 }, { diskSize: 3 * L2_COVERAGE }],
    });
    const image = openQcow2(built.bytes);
    expect(image.openSnapshot(0).virtualSize).toBe(1024);
    const larger = image.openSnapshot(1);
    expect(larger.virtualSize).toBe(3 * L2_COVERAGE);
    expect(extentAt(larger, 2 * L2_COVERAGE + 5)).toMatchObject({
      kind: "unallocated",
      length: L2_COVERAGE - 5,
    });
  });

  it("checks the place and size of the snapshot's L1 table when it is opened, not before", () => {
    const built = buildQcow2({ snapshots: [{}, {}, {}] });
    built.setSnapshot(0, "l1_table_offset", 0x1_0200);
    built.setSnapshot(1, "l1_size", 32 * 1024 * 1024);
    const image = openQcow2(built.bytes);
    expect([...image.readSnapshots()]).toHaveLength(3);
    expect(() => image.openSnapshot(0)).toThrow(
      /snapshot L1 table offset 0x10200 is not a multiple/,
    );
    expect(() => image.openSnapshot(1)).toThrow(/has 268435456 bytes, the limit is 33554432/);
    expect(() => image.openSnapshot(2)).not.toThrow();
  });

  it("reads an L1 table past the end of the file as zeros", () => {
    const built = buildQcow2({ clusters: { 0: DATA }, snapshots: [{}] });
    built.setSnapshot(0, "l1_table_offset", 2n ** 40n);
    const snapshot = openQcow2(built.bytes).openSnapshot(0);
    expect(extentAt(snapshot, 0)).toMatchObject({ kind: "unallocated", length: 1024 * 1024 });
  });

  it("reads compressed clusters that it shares with the active disk, in turns with it", () => {
    const random = new Random("shared compressed clusters");
    const contents = [random.text(16384), random.text(16384)];
    const clusters = Object.fromEntries(
      contents.map((bytes, index) => [
        index,
        { kind: "compressed", stream: deflate(bytes) } as const,
      ]),
    );
    const bytes = qcow2Bytes({ clusterBits: 14, virtualSize: 32768, clusters, snapshots: [{}] });
    const active = openQcow2(bytes);
    const snapshot = active.openSnapshot(0);
    const expected = Buffer.concat(contents);
    for (let round = 0; round < 200; round++) {
      const view = random.below(2) === 0 ? active : snapshot;
      const offset = random.below(32) * 1024;
      const found = readCompressed(view, offset, 1024);
      expect(found.equals(expected.subarray(offset, offset + 1024)), `at ${offset}`).toBe(true);
    }
  });

  it("maps a disk far larger than its L1 table without a walk over what is not there", () => {
    // 2^28 times the 32 KiB that an L2 table of 512-byte clusters maps: a walk takes seconds.
    const bytes = qcow2Bytes({ clusterBits: 9, snapshots: [{ diskSize: 2n ** 43n }] });
    const snapshot = openQcow2(bytes).openSnapshot(0);
    const start = performance.now();
    expect(extentAt(snapshot, 0)).toMatchObject({ kind: "unallocated", length: 2 ** 43 });
    expect(performance.now() - start).toBeLessThan(500);
  });
});
