/** Block status through chains, and seeking for data and holes, against a scan of the model. */

import { describe, expect, it } from "vitest";
import { BackingChain } from "../../../src/block/backing-chain.ts";
import { BlockStatus, BlockStatusWalker } from "../../../src/block/block-status.ts";
import type { FormatImage } from "../../../src/formats/driver.ts";
import { RawImage } from "../../../src/formats/raw/raw-image.ts";
import { deflate } from "../../support/compressed-stream-builder.ts";
import { buildQcow2, qcow2Bytes } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { qedBytes } from "../../support/qed-builder.ts";
import { Random } from "../../support/random.ts";
import { openQcow2, openQed } from "../formats/open-image.ts";
import { MemoryStorage } from "../memory-storage.ts";

const CLUSTER = 512;

interface StatusRow {
  readonly start: number;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
}

/** The whole map of a disk; neighbours that are alike are one, as in qemu-img map. */
function mapOf(...images: [FormatImage, ...FormatImage[]]): StatusRow[] {
  const walker = new BlockStatusWalker(new BackingChain(images));
  const size = images[0].virtualSize;
  const rows: StatusRow[] = [];
  const status = new BlockStatus();
  for (let start = 0; start < size; start += status.length) {
    walker.statusAt(start, size - start, status);
    expect(status.length).toBeGreaterThan(0);
    const { length, depth, present, zero, data } = status;
    const last = rows.at(-1);
    const key = ({ depth, present, zero, data }: Omit<StatusRow, "start" | "length">): string =>
      JSON.stringify([depth, present, zero, data]);
    if (last !== undefined && key(last) === key(status)) {
      rows.splice(-1, 1, { ...last, length: last.length + length });
    } else {
      rows.push({ start, length, depth, present, zero, data });
    }
  }
  return rows;
}

const rows = (text: string): StatusRow[] =>
  text
    .trim()
    .split("\n")
    .map((line) => {
      const [start, length, depth, ...words] = line.trim().split(/ +/);
      const has = (word: string): boolean => words.includes(word);
      return {
        start: Number(start) * CLUSTER,
        length: Number(length) * CLUSTER,
        depth: Number(depth),
        present: has("present"),
        zero: has("zero"),
        data: has("data"),
      };
    });

const bytes = Buffer.alloc(CLUSTER, 1);

describe("BlockStatusWalker.statusAt", () => {
  it("says which layer decides, and what it says", () => {
    const top = openQcow2(
      qcow2Bytes({
        clusterBits: 9,
        virtualSize: 8 * CLUSTER,
        clusters: {
          0: { kind: "data", bytes },
          1: { kind: "zero" },
          2: { kind: "compressed", stream: deflate(bytes) },
        },
      }),
    );
    const below = openQcow2(
      qcow2Bytes({
        clusterBits: 9,
        virtualSize: 6 * CLUSTER,
        clusters: { 1: { kind: "data", bytes }, 3: { kind: "data", bytes }, 4: { kind: "zero" } },
      }),
    );
    expect(mapOf(top, below)).toEqual(
      rows(`
        0 1 0 present data
        1 1 0 present zero
        2 1 0 present data
        3 1 1 present data
        4 1 1 present zero
        5 1 1 zero
        6 2 0 zero
      `),
    );
  });

  it("gives host offsets of data, and of preallocated zeros, not of compressed clusters", () => {
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: 4 * CLUSTER,
      clusters: {
        0: { kind: "data", bytes },
        1: { kind: "zero-preallocated", bytes },
        2: { kind: "compressed", stream: deflate(bytes) },
      },
    });
    const walker = new BlockStatusWalker(new BackingChain([openQcow2(built.bytes)]));
    const status = new BlockStatus();
    walker.statusAt(10, 100, status);
    expect(status).toMatchObject({ hostOffset: built.region("data 0").offset + 10, length: 100 });
    walker.statusAt(CLUSTER, 5, status);
    expect(status).toMatchObject({
      hostOffset: built.region("data 1").offset,
      zero: true,
      data: false,
    });
    walker.statusAt(2 * CLUSTER, 4 * CLUSTER, status);
    expect(status).toMatchObject({ hostOffset: -1, compressed: true, data: true, length: CLUSTER });
    walker.statusAt(3 * CLUSTER, CLUSTER, status);
    expect(status).toMatchObject({ hostOffset: -1, compressed: false, present: false, zero: true });
  });

  it("takes holes of a raw file for zeros, and its padding to a sector too", () => {
    const storage = new MemoryStorage("disk.raw", new Uint8Array(4 * CLUSTER + 1));
    storage.holes = [[CLUSTER, 3 * CLUSTER]];
    expect(mapOf(new RawImage(storage))).toEqual([
      { start: 0, length: CLUSTER, depth: 0, present: true, zero: false, data: true },
      { start: CLUSTER, length: 2 * CLUSTER, depth: 0, present: true, zero: true, data: false },
      { start: 3 * CLUSTER, length: CLUSTER + 1, depth: 0, present: true, zero: false, data: true },
      { start: 4 * CLUSTER + 1, length: 511, depth: 0, present: true, zero: true, data: false },
    ]);
  });

  it("asks the host about holes of a preallocated qcow2 image", () => {
    const clusters = Object.fromEntries(
      Array.from({ length: 32 }, (_, index) => [index, { kind: "data", bytes } as const]),
    );
    const built = buildQcow2({ clusterBits: 9, virtualSize: 32 * CLUSTER, clusters });
    const image = openQcow2(built.bytes);
    if (!(image.storage instanceof MemoryStorage)) throw new Error("not in memory");
    image.storage.allocated = 4 * CLUSTER;
    const first = built.region("data 0").offset;
    image.storage.holes = [[first + 8 * CLUSTER, first + 16 * CLUSTER]];
    expect(mapOf(image)).toEqual(
      rows(`
        0 8 0 present data
        8 8 0 present data zero
        16 16 0 present data
      `),
    );
  });

  it("does not ask the host about holes of other images", () => {
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: CLUSTER,
      clusters: { 0: { kind: "data", bytes } },
    });
    const image = openQcow2(built.bytes);
    if (!(image.storage instanceof MemoryStorage)) throw new Error("not in memory");
    image.storage.holes = [[0, built.bytes.length]];
    expect(mapOf(image)).toEqual(rows("0 1 0 present data"));
  });

  it("ends a run where the image below ends", () => {
    const top = openQed(qedBytes({ clusterSize: 4096, tableClusters: 1, virtualSize: 8192 }));
    const below = new RawImage(new MemoryStorage("base.raw", new Uint8Array(1024)));
    expect(mapOf(top, below)).toEqual(
      rows(`
        0 2 1 present data
        2 14 0 zero
      `),
    );
  });
});

describe("BlockStatusWalker.seek", () => {
  const random = new Random("seek");
  const kinds = Array.from({ length: 300 }, () => random.pick(["data", "zero", "hole", "hole"]));
  const clusters: Record<number, Qcow2Cluster> = {};
  for (const [index, kind] of kinds.entries()) {
    if (kind === "data") clusters[index] = { kind, bytes };
    if (kind === "zero") clusters[index] = { kind };
  }
  const virtualSize = 300 * CLUSTER;
  const image = openQcow2(qcow2Bytes({ clusterBits: 9, virtualSize, clusters }));
  const walker = new BlockStatusWalker(new BackingChain([image]));

  it("finds what a scan byte by byte finds", () => {
    const isData = (offset: number): boolean => kinds[Math.floor(offset / CLUSTER)] === "data";
    for (let round = 0; round < 300; round++) {
      const start = random.below(virtualSize);
      for (const what of ["data", "hole"] as const) {
        let slow = start;
        while (slow < virtualSize && isData(slow) !== (what === "data")) slow++;
        expect(walker.seek(start, what), `${what} from ${start}`).toBe(slow);
      }
    }
  });

  it("gives the virtual size where there is none", () => {
    const empty = openQcow2(qcow2Bytes({ virtualSize: 1_000_448 }));
    expect(new BlockStatusWalker(new BackingChain([empty])).seek(5, "data")).toBe(1_000_448);
    const full = new RawImage(new MemoryStorage("full", Buffer.alloc(1024, 1)));
    expect(new BlockStatusWalker(new BackingChain([full])).seek(5, "hole")).toBe(1024);
  });

  it("gives an allowed answer soon for tables that map the same clusters again and again", () => {
    // One L2 table, used 8192 times, of zero clusters that do not continue each other on the host.
    const l1Entries = 8192;
    const zeros = Object.fromEntries(
      Array.from({ length: 64 }, (_, index) => [
        index,
        { kind: "zero-preallocated", bytes } as const,
      ]),
    );
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: l1Entries * 64 * CLUSTER,
      clusters: zeros,
    });
    const first = built.getL2(0);
    for (let index = 0; index < 64; index += 2) built.setL2(index, first);
    const table = built.getU64(built.l1EntryOffset(0));
    for (let index = 0; index < l1Entries; index++) built.setL1(index, table);
    const hostile = openQcow2(built.bytes);
    const hostileWalker = new BlockStatusWalker(new BackingChain([hostile]));
    const start = performance.now();
    const data = hostileWalker.seek(0, "data");
    expect(data).toBeGreaterThan(0);
    expect(data).toBeLessThanOrEqual(hostile.virtualSize);
    expect(hostileWalker.seek(0, "hole")).toBe(0);
    expect(performance.now() - start).toBeLessThan(3000);
  });
});
