/** Reading through backing chains of mixed formats, cluster sizes and disk sizes. */

import { describe, expect, it } from "vitest";
import { BackingChain } from "../../../src/block/backing-chain.ts";
import { NativeBuffer } from "../../../src/syscalls/native-buffer.ts";
import { buildQcow2, qcow2Bytes } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { Random } from "../../support/random.ts";
import { openQcow2 } from "../formats/open-image.ts";
import { MemoryStorage } from "../memory-storage.ts";
import {
  layeredDisk,
  type ModelledLayer,
  randomQcow2,
  randomQed,
  randomSubclusters,
  rawLayer,
} from "./layered-disk.ts";

function readFrom(chain: BackingChain, offset: number, length: number): Buffer {
  const target = NativeBuffer.allocate(length + 16);
  target.bytes.fill(0xcc);
  chain.read(offset, length, target, 8);
  const before = target.bytes.subarray(0, 8);
  const after = target.bytes.subarray(length + 8);
  expect([...before, ...after]).toEqual(Array(16).fill(0xcc));
  return Buffer.from(target.bytes.subarray(8, length + 8));
}

function expectEverywhere(
  label: string,
  layers: readonly [ModelledLayer, ...ModelledLayer[]],
): void {
  const random = new Random(`reads ${label}`);
  const { chain, expected } = layeredDisk(layers);
  const size = expected.length;
  expect(readFrom(chain, 0, size).equals(expected), "the whole disk").toBe(true);
  for (let round = 0; round < 300; round++) {
    const offset = random.below(size);
    const length = 1 + random.below(Math.min(size - offset, random.pick([8, 600, 5000, size])));
    const same = readFrom(chain, offset, length).equals(expected.subarray(offset, offset + length));
    expect(same, `${length} bytes at ${offset}`).toBe(true);
  }
}

const KIB = 1024;

describe("BackingChain.read", () => {
  it("reads one image without a backing file", () => {
    const random = new Random("single");
    expectEverywhere("qcow2", [randomQcow2(random, { clusterSize: 512, virtualSize: 100 * KIB })]);
    expectEverywhere("qed", [randomQed(random, { clusterSize: 4096, virtualSize: 100 * KIB })]);
    expectEverywhere("sub-clusters", [randomSubclusters(random, 100 * KIB)]);
    expectEverywhere("raw", [rawLayer(random.bytes(10_240))]);
  });

  it.each([
    { name: "smaller clusters on larger ones", top: 512, bottom: 8192 },
    { name: "larger clusters on smaller ones", top: 8192, bottom: 512 },
    { name: "equal clusters", top: 4096, bottom: 4096 },
  ])("reads through $name", ({ name, top, bottom }) => {
    const random = new Random(name);
    expectEverywhere(name, [
      randomQcow2(random, { clusterSize: top, virtualSize: 128 * KIB }),
      randomQcow2(random, { clusterSize: bottom, virtualSize: 128 * KIB }),
    ]);
  });

  it.each([
    { name: "shorter", below: 50 * KIB + 512 },
    { name: "longer", below: 200 * KIB },
    { name: "empty", below: 0 },
  ])("reads through a backing file that is $name", ({ name, below }) => {
    const random = new Random(name);
    expectEverywhere(`qcow2 ${name}`, [
      randomQcow2(random, { clusterSize: 4096, virtualSize: 100 * KIB }),
      randomQcow2(random, { clusterSize: 512, virtualSize: below }),
    ]);
    expectEverywhere(`raw ${name}`, [
      randomQcow2(random, { clusterSize: 4096, virtualSize: 100 * KIB }),
      rawLayer(random.bytes(below)),
    ]);
  });

  it("reads a raw backing file that ends within a sector", () => {
    const random = new Random("odd raw");
    for (const length of [1, 511, 513, 5000]) {
      expectEverywhere(`raw of ${length}`, [
        randomQcow2(random, { clusterSize: 512, virtualSize: 8192 }),
        rawLayer(random.bytes(length)),
      ]);
    }
  });

  it("hides what is below a middle image beyond that image's end", () => {
    const random = new Random("short middle");
    expectEverywhere("short middle", [
      randomQcow2(random, { clusterSize: 1024, virtualSize: 64 * KIB }),
      randomQcow2(random, { clusterSize: 2048, virtualSize: 20 * KIB + 512 }),
      rawLayer(random.bytes(64 * KIB)),
    ]);
  });

  it("reads through five layers of all formats", () => {
    const random = new Random("five layers");
    expectEverywhere("five layers", [
      randomSubclusters(random, 96 * KIB),
      randomQed(random, { clusterSize: 4096, virtualSize: 90 * KIB }),
      randomQcow2(random, { clusterSize: 512, virtualSize: 120 * KIB }),
      randomQcow2(random, { clusterSize: 32 * KIB, virtualSize: 96 * KIB }),
      rawLayer(random.bytes(95 * KIB + 7)),
    ]);
  });

  it("reads clusters that continue on the host in one go", () => {
    const clusters: Record<number, Qcow2Cluster> = {};
    // An L2 table of 8 KiB is two slices of 512 entries: the run crosses from one to the other.
    for (let index = 500; index < 530; index++) {
      clusters[index] = { kind: "data", bytes: Buffer.alloc(8192, index) };
    }
    const built = buildQcow2({ clusterBits: 13, virtualSize: 1024 * 8192, clusters });
    const image = openQcow2(built.bytes);
    const chain = new BackingChain([image]);
    if (!(image.storage instanceof MemoryStorage)) throw new Error("not in memory");
    readFrom(chain, 500 * 8192, 30 * 8192);
    image.storage.reads.length = 0;
    readFrom(chain, 500 * 8192 + 100, 30 * 8192 - 200);
    expect(image.storage.reads).toEqual([
      { offset: built.region("data 500").offset + 100, length: 30 * 8192 - 200 },
    ]);
  });

  it("takes the bytes of an external data file from there", () => {
    const bytes = new Random("data file").bytes(4096);
    const built = buildQcow2({
      clusterBits: 9,
      virtualSize: 4096,
      dataFile: "disk.data",
      clusters: {
        0: { kind: "data", bytes: bytes.subarray(0, 512) },
        7: { kind: "data", bytes: bytes.subarray(3584) },
      },
    });
    const chain = new BackingChain([openQcow2(built.bytes, built.dataFile)]);
    const expected = Buffer.alloc(4096);
    bytes.copy(expected, 0, 0, 512);
    bytes.copy(expected, 3584, 3584);
    expect(readFrom(chain, 0, 4096).equals(expected)).toBe(true);
  });

  it("reads a snapshot's disk with the same backing files", () => {
    const random = new Random("snapshot chain");
    const below = rawLayer(random.bytes(64 * KIB));
    const snapshotBytes = random.bytes(512);
    const image = openQcow2(
      qcow2Bytes({
        clusterBits: 9,
        virtualSize: 8192,
        clusters: { 0: { kind: "data", bytes: random.bytes(512) } },
        snapshots: [{ clusters: { 1: { kind: "data", bytes: snapshotBytes } }, diskSize: 4096 }],
      }),
    );
    const snapshot = new BackingChain([image, below.image]).openSnapshot(0);
    expect(snapshot.virtualSize).toBe(4096);
    const expected = Buffer.from(
      Array.from({ length: 4096 }, (_, offset) => below.byteAt(offset) ?? 0),
    );
    snapshotBytes.copy(expected, 512);
    expect(readFrom(snapshot, 0, 4096).equals(expected)).toBe(true);
  });
});
