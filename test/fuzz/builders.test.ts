// The image builders against qemu-img: what they make without overrides is valid and reads as stated.

import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { deflate, zstdRun, zstdStore } from "../support/compressed-stream-builder.ts";
import { buildQcow2, type Qcow2Options } from "../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../support/qcow2-tree-builder.ts";
import { buildQed, type QedOptions } from "../support/qed-builder.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";

const random = new Random("builders");

/** Guest clusters 0 to 3: data, zeros, zeros over data, data; then two that compress. */
function someClusters(
  clusterSize: number,
  stream: (bytes: Buffer) => Buffer,
): [Record<number, Qcow2Cluster>, Buffer] {
  const first = random.bytes(clusterSize);
  const hidden = random.bytes(clusterSize);
  const third = random.bytes(clusterSize);
  const texts = [random.text(clusterSize), random.text(clusterSize)] as const;
  const clusters: Record<number, Qcow2Cluster> = {
    0: { kind: "data", bytes: first },
    1: { kind: "zero" },
    2: { kind: "zero-preallocated", bytes: hidden },
    3: { kind: "data", bytes: third },
    5: { kind: "compressed", stream: stream(texts[0]) },
    6: { kind: "compressed", stream: stream(texts[1]) },
  };
  const zeros = Buffer.alloc(clusterSize);
  return [clusters, Buffer.concat([first, zeros, zeros, third, zeros, ...texts, zeros])];
}

/** Runs in the image's directory: QEMU 7.2 takes the name of a data file relative to where it runs. */
async function contentByQemu(
  path: string,
  format: string,
  more: readonly string[] = [],
): Promise<Buffer> {
  const cwd = dirname(path);
  await run("qemu-img", ["check", "-f", format, path], { cwd });
  await run("qemu-img", ["convert", ...more, "-f", format, "-O", "raw", path, `${path}.out`], {
    cwd,
  });
  return readFileSync(`${path}.out`);
}

describe("qcow2 builder", () => {
  it.each<[string, Qcow2Options]>([
    ["64 KiB clusters", {}],
    ["512-byte clusters", { clusterBits: 9 }],
    ["4 KiB clusters", { clusterBits: 12 }],
    ["2 MiB clusters", { clusterBits: 21 }],
    ["version 2", { version: 2, clusterBits: 12 }],
    ["a short header", { headerLength: 104, clusterBits: 12 }],
    ["1-bit refcounts", { refcountOrder: 0, clusterBits: 12 }],
    [
      "64-bit refcounts and many refcount blocks",
      { refcountOrder: 6, clusterBits: 9, virtualSize: 8 * 512 },
    ],
    ["zstd", { compressionType: 1, clusterBits: 16 }],
    ["extended L2 entries", { extendedL2: true }],
    ["a snapshot that shares everything", { clusterBits: 12, snapshots: [{ name: "shared" }] }],
  ])("makes an image that qemu-img finds right: %s", async (_label, options) => {
    await withScratch("builder", async (directory) => {
      const clusterSize = 2 ** (options.clusterBits ?? 16);
      const stream = options.compressionType === 1 ? zstdStore : deflate;
      const [all, content] = someClusters(clusterSize, stream);
      // A stream that stays as long as its cluster, or two in one 1-bit-counted cluster, is not valid.
      const plain =
        options.compressionType === 1 || options.refcountOrder === 0 || options.version === 2;
      const clusters: Record<number, Qcow2Cluster> = plain
        ? { 0: all[0] ?? { kind: "zero" } }
        : all;
      const expected = plain
        ? Buffer.concat([content.subarray(0, clusterSize), Buffer.alloc(7 * clusterSize)])
        : content;
      const image = buildQcow2({ virtualSize: 8 * clusterSize, clusters, ...options });
      const path = image.write(join(directory, "a.qcow2"));
      expect((await contentByQemu(path, "qcow2")).equals(expected)).toBe(true);
    });
  });

  it("makes zstd streams that qemu-img decompresses", async () => {
    await withScratch("builder", async (directory) => {
      const clusters: Record<number, Qcow2Cluster> = {
        0: { kind: "compressed", stream: zstdRun(0x41, 65536) },
        1: {
          kind: "compressed",
          stream: Buffer.concat([zstdRun(0x42, 32768), zstdStore(Buffer.alloc(32768, 0x43))]),
        },
      };
      const image = buildQcow2({ compressionType: 1, virtualSize: 131072, clusters });
      const path = image.write(join(directory, "a.qcow2"));
      const expected = Buffer.concat([
        Buffer.alloc(65536, 0x41),
        Buffer.alloc(32768, 0x42),
        Buffer.alloc(32768, 0x43),
      ]);
      expect((await contentByQemu(path, "qcow2")).equals(expected)).toBe(true);
    });
  });

  it("makes snapshots, a backing file and sub-clusters as stated", async () => {
    await withScratch("builder", async (directory) => {
      const backing = random.bytes(4 * 65536);
      writeFileSync(join(directory, "base.img"), backing);
      const bytes = random.bytes(65536);
      const old = random.bytes(65536);
      const image = buildQcow2({
        virtualSize: backing.length,
        extendedL2: true,
        backingFile: "base.img",
        backingFormat: "raw",
        clusters: { 1: { kind: "subclusters", bytes, allocated: 0x0000_000f, zero: 0x0000_00f0 } },
        snapshots: [
          { name: "shared" },
          { name: "own", clusters: { 0: { kind: "data", bytes: old } } },
        ],
      });
      const path = image.write(join(directory, "a.qcow2"));
      const expected = Buffer.from(backing);
      bytes.copy(expected, 65536, 0, 4 * 2048);
      expected.fill(0, 65536 + 4 * 2048, 65536 + 8 * 2048);
      expect((await contentByQemu(path, "qcow2")).equals(expected)).toBe(true);
      const own = Buffer.from(backing);
      old.copy(own);
      expect((await contentByQemu(path, "qcow2", ["-l", "own"])).equals(own)).toBe(true);
    });
  });

  it("makes an external data file", async () => {
    await withScratch("builder", async (directory) => {
      const bytes = random.bytes(65536);
      const clusters: Record<number, Qcow2Cluster> = {
        0: { kind: "data", bytes },
        2: { kind: "data", bytes },
      };
      const image = buildQcow2({ virtualSize: 4 * 65536, dataFile: "a.data", clusters });
      writeFileSync(join(directory, "a.data"), image.dataFile ?? "");
      const path = image.write(join(directory, "a.qcow2"));
      const zeros = Buffer.alloc(65536);
      expect(
        (await contentByQemu(path, "qcow2")).equals(Buffer.concat([bytes, zeros, bytes, zeros])),
      ).toBe(true);
    });
  });
});

// QEMU refuses every table of one cluster, which the specification allows; nothing to compare with there.
describe("QED builder", () => {
  it.each<[string, QedOptions]>([
    ["64 KiB clusters", {}],
    ["4 KiB clusters, two per table", { clusterSize: 4096, tableClusters: 2 }],
    ["two header clusters", { clusterSize: 4096, tableClusters: 2, headerClusters: 2 }],
    ["16-cluster tables", { clusterSize: 4096, tableClusters: 16 }],
  ])("makes an image that qemu-img finds right: %s", async (_label, options) => {
    await withScratch("builder", async (directory) => {
      const clusterSize = options.clusterSize ?? 65536;
      const backing = random.bytes(4 * clusterSize);
      writeFileSync(join(directory, "base.img"), backing);
      const bytes = random.bytes(clusterSize);
      const path = buildQed({
        virtualSize: 4 * clusterSize,
        backingFile: "base.img",
        backingFormat: "raw",
        clusters: { 1: { kind: "data", bytes }, 2: { kind: "zero" } },
        ...options,
      }).write(join(directory, "a.qed"));
      const expected = Buffer.from(backing);
      bytes.copy(expected, clusterSize);
      expected.fill(0, 2 * clusterSize, 3 * clusterSize);
      expect((await contentByQemu(path, "qed")).equals(expected)).toBe(true);
    });
  });
});
