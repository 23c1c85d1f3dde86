/** What a disk consists of, over images laid out by hand; and what hostile tables do to the counting. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { allocationOf, mountedAllocationOf } from "../../../src/block/allocation-stats.ts";
import { attachChain } from "../../../src/block/attach-disk.ts";
import { Disk } from "../../../src/block/disk.ts";
import { countDisk } from "../../../src/block/guest-allocation.ts";
import { closeChain, type OpenChain, openChain } from "../../../src/block/open-chain.ts";
import { ClusterCache } from "../../../src/formats/compression/cluster-cache.ts";
import { buildQcow2 } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { withScratch } from "../../support/scratch.ts";

const CLUSTER = 512;
/** Clusters of the disk that one L2 table covers. */
const COVERED = CLUSTER / 8;
const DATA: Qcow2Cluster = { kind: "data", bytes: Uint8Array.of(1) };

async function withDisk(
  files: Readonly<Record<string, Uint8Array>>,
  body: (disk: Disk, chain: OpenChain, directory: string) => void,
): Promise<void> {
  await withScratch("guest-allocation", async (directory) => {
    for (const [name, bytes] of Object.entries(files)) writeFileSync(join(directory, name), bytes);
    const [top = ""] = Object.keys(files);
    const chain = openChain(join(directory, top), {
      format: undefined,
      backingPolicy: undefined,
      forceShare: false,
    });
    try {
      const resources = { clusterCache: new ClusterCache() };
      body(Disk.readOnly(attachChain(chain.layers, resources)), chain, directory);
    } finally {
      closeChain(chain);
    }
  });
}

function topOf({ layers }: OpenChain): OpenChain["layers"][number] {
  const [top] = layers;
  if (top === undefined) throw new Error("no image");
  return top;
}

describe("countDisk", () => {
  it("knows the kinds of clusters, up to the last one, which is short", async () => {
    // The last cluster is number 96.
    const virtualSize = 96 * 1024 + 512;
    const { bytes } = buildQcow2({
      clusterBits: 10,
      virtualSize,
      clusters: {
        0: DATA,
        1: { kind: "zero" },
        2: { kind: "compressed", stream: Uint8Array.of(2) },
        96: DATA,
      },
    });
    await withDisk({ "a.qcow2": bytes }, (disk, _, directory) => {
      expect(countDisk(disk, 1000)).toEqual({
        guest: { data: 1024 + 512, zero: 1024, compressed: 1024, unallocated: 93 * 1024 },
        layers: [{ depth: 0, filename: join(directory, "a.qcow2"), bytes: 3 * 1024 + 512 }],
        nowhere: 93 * 1024,
      });
    });
  });

  it("does not count more of a backing file than shows", async () => {
    const top = buildQcow2({
      clusterBits: 9,
      virtualSize: 10 * CLUSTER,
      backingFile: "base.raw",
      backingFormat: "raw",
      clusters: { 1: DATA, 3: { kind: "zero" } },
    });
    for (const [length, shown] of [
      [0, 0],
      [1, CLUSTER],
      [4 * CLUSTER, 2 * CLUSTER],
      [5 * CLUSTER - 1, 3 * CLUSTER],
      [100 * CLUSTER, 8 * CLUSTER],
    ] as const) {
      await withDisk({ "top.qcow2": top.bytes, "base.raw": Buffer.alloc(length, 1) }, (disk) => {
        const { guest, layers, nowhere } = countDisk(disk, 1000);
        expect(guest).toEqual({ data: 512, zero: 512, compressed: 0, unallocated: 8 * CLUSTER });
        expect(layers.map(({ bytes }) => bytes)).toEqual([2 * CLUSTER, shown]);
        expect(nowhere).toBe(8 * CLUSTER - shown);
      });
    }
  });

  it("gives up a disk that is more work than the limit", async () => {
    const image = buildQcow2({
      clusterBits: 9,
      virtualSize: 100 * COVERED * CLUSTER,
      clusters: { 0: DATA },
    });
    const entry = image.getU64(image.l1EntryOffset(0));
    for (let index = 1; index < 100; index++) image.setL1(index, entry);
    await withDisk({ "a.qcow2": image.bytes }, (disk) => {
      expect(() => countDisk(disk, 1000)).toThrow(
        /a\.qcow2: to look at all of its tables would take too long/,
      );
      expect(countDisk(disk, 10_000).guest.data).toBe(100 * CLUSTER);
    });
  });
});

describe("statistics of a damaged image", () => {
  it("have the reason in place of what cannot be counted, in a mount; else there are none", async () => {
    const refcounts = buildQcow2({ clusters: { 0: DATA } }).setRefcountTable(0, 0x200n);
    await withDisk({ "a.qcow2": refcounts.bytes }, (disk, chain, directory) => {
      const reason = `${directory}/a.qcow2: refcount block 0 offset 0x200 is not a multiple of the cluster size 0x10000`;
      const stats = mountedAllocationOf(disk, topOf(chain), undefined);
      expect(stats).toMatchObject({ "alloc-info": { error: reason }, guest: { data: 65536 } });
      expect(() => allocationOf(disk, topOf(chain))).toThrow(reason);
    });
    const l1 = buildQcow2({ clusters: { 0: DATA } }).setL1(0, 0x200n);
    await withDisk({ "a.qcow2": l1.bytes }, (disk, chain) => {
      const stats = mountedAllocationOf(disk, topOf(chain), undefined);
      expect(stats).toMatchObject({
        "alloc-info": { "file-size": l1.bytes.length },
        guest: { error: expect.stringMatching(/a\.qcow2: L2 table offset 0x200 is not/) },
        reserved: 0,
      });
      expect(Object.keys(stats)).toEqual(["alloc-info", "guest", "reserved"]);
    });
  });
});
