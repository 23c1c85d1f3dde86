/** What a writer asks of a disk: whether a range reads as zeros, against a disk that is known byte by byte. */

import { describe, expect, it } from "vitest";
import { BackingChain } from "../../../src/block/backing-chain.ts";
import { ZeroLookup } from "../../../src/block/zero-lookup.ts";
import { RawImage } from "../../../src/formats/raw/raw-image.ts";
import { deflate } from "../../support/compressed-stream-builder.ts";
import { qcow2Bytes } from "../../support/qcow2-builder.ts";
import { Random } from "../../support/random.ts";
import { openQcow2 } from "../formats/open-image.ts";
import { MemoryStorage } from "../memory-storage.ts";
import {
  layeredDisk,
  randomQcow2,
  randomQed,
  randomSubclusters,
  rawLayer,
} from "./layered-disk.ts";

const CLUSTER = 512;
const bytes = Buffer.alloc(CLUSTER, 1);

const isZero = (part: Buffer): boolean => part.every((byte) => byte === 0);

/** Two layers; by cluster: what the upper and the lower one say. The lower one ends within cluster 8. */
function sampleChain(): BackingChain {
  const top = openQcow2(
    qcow2Bytes({
      clusterBits: 9,
      virtualSize: 12 * CLUSTER,
      clusters: {
        0: { kind: "data", bytes },
        1: { kind: "zero" },
        2: { kind: "zero-preallocated", bytes },
        3: { kind: "compressed", stream: deflate(Buffer.alloc(CLUSTER)) },
        4: { kind: "data", bytes: Buffer.alloc(CLUSTER) },
      },
    }),
  );
  const below = openQcow2(
    qcow2Bytes({
      clusterBits: 9,
      virtualSize: 9 * CLUSTER,
      clusters: {
        1: { kind: "data", bytes },
        5: { kind: "data", bytes },
        6: { kind: "zero" },
        7: { kind: "zero-preallocated", bytes },
      },
    }),
  );
  return new BackingChain([top, below]);
}

describe("ZeroLookup.zerosAt", () => {
  it.each([
    { cluster: 0, what: "data", without: 0, withPlace: 0 },
    { cluster: 1, what: "zeros over data", without: CLUSTER, withPlace: CLUSTER },
    { cluster: 2, what: "zeros with a place", without: 0, withPlace: CLUSTER },
    { cluster: 3, what: "compressed zeros", without: 0, withPlace: 0 },
    { cluster: 4, what: "zeros as data", without: 0, withPlace: 0 },
    { cluster: 5, what: "data below", without: 0, withPlace: 0 },
    { cluster: 6, what: "zeros below", without: CLUSTER, withPlace: CLUSTER },
    { cluster: 7, what: "zeros below with a place there", without: CLUSTER, withPlace: CLUSTER },
    { cluster: 8, what: "nothing anywhere", without: CLUSTER, withPlace: CLUSTER },
  ])("knows $what", ({ cluster, without, withPlace }) => {
    const zeros = new ZeroLookup(sampleChain());
    expect(zeros.zerosAt(cluster * CLUSTER, CLUSTER, false)).toBe(without);
    expect(zeros.zerosAt(cluster * CLUSTER, CLUSTER, true)).toBe(withPlace);
    if (without > 0) {
      expect(zeros.zerosAt(cluster * CLUSTER + 100, 12, false)).toBe(12);
      expect(zeros.zerosAt((cluster + 1) * CLUSTER - 1, 1, false)).toBe(1);
    }
  });

  it("goes no further than what holds, and than the disk below", () => {
    const zeros = new ZeroLookup(sampleChain());
    expect(zeros.zerosAt(CLUSTER, 2 * CLUSTER, false)).toBe(CLUSTER);
    const found = zeros.zerosAt(8 * CLUSTER, 4 * CLUSTER, false);
    expect(found).toBeGreaterThan(0);
    expect(found).toBeLessThanOrEqual(4 * CLUSTER);
  });

  it("takes holes of a raw disk for zeros without a place or with one, never data", () => {
    const storage = new MemoryStorage("disk.raw", Buffer.alloc(8 * CLUSTER, 1));
    storage.bytes.fill(0, 2 * CLUSTER, 4 * CLUSTER);
    storage.holes = [[2 * CLUSTER, 4 * CLUSTER]];
    const zeros = new ZeroLookup(new BackingChain([new RawImage(storage)]));
    expect(zeros.zerosAt(2 * CLUSTER, 2 * CLUSTER, true)).toBe(2 * CLUSTER);
    expect(zeros.zerosAt(CLUSTER, CLUSTER, true)).toBe(0);
    expect(zeros.zerosAt(3 * CLUSTER, 2 * CLUSTER, true)).toBe(0);
    expect(zeros.readsAsZero(2 * CLUSTER, 4 * CLUSTER)).toBe(true);
    expect(zeros.readsAsZero(2 * CLUSTER, 4 * CLUSTER + 1)).toBe(false);
  });
});

describe("ZeroLookup.readsAsZero", () => {
  it("looks at all of a range, and at nothing past the end of the disk", () => {
    const zeros = new ZeroLookup(sampleChain());
    expect(zeros.readsAsZero(CLUSTER, 3 * CLUSTER)).toBe(true);
    expect(zeros.readsAsZero(CLUSTER, 3 * CLUSTER + 1)).toBe(false);
    expect(zeros.readsAsZero(CLUSTER - 1, 2 * CLUSTER)).toBe(false);
    expect(zeros.readsAsZero(6 * CLUSTER, 12 * CLUSTER)).toBe(true);
    expect(zeros.readsAsZero(6 * CLUSTER, 1000 * CLUSTER)).toBe(true);
    expect(zeros.readsAsZero(5 * CLUSTER, 5 * CLUSTER)).toBe(true);
  });

  it("does not read data", () => {
    const image = openQcow2(
      qcow2Bytes({ clusterBits: 9, virtualSize: 4096, clusters: { 0: { kind: "data", bytes } } }),
    );
    const { storage } = image;
    if (!(storage instanceof MemoryStorage)) throw new Error("not in memory");
    const zeros = new ZeroLookup(new BackingChain([image]));
    zeros.readsAsZero(0, 4096);
    const before = storage.reads.length;
    expect(zeros.readsAsZero(0, 4096)).toBe(false);
    expect(zeros.readsAsZero(512, 4096)).toBe(true);
    expect(storage.reads).toHaveLength(before);
  });
});

describe.each([
  { label: "qcow2 over qcow2", seed: "one" },
  { label: "qcow2 over qcow2", seed: "two" },
  { label: "sub-clusters over raw", seed: "three" },
  { label: "qcow2 over QED over raw", seed: "four" },
])("ZeroLookup on $label ($seed)", ({ label, seed }) => {
  const random = new Random(`zero lookup ${seed}`);
  const { chain, expected } = ((): ReturnType<typeof layeredDisk> => {
    switch (label) {
      case "qcow2 over qcow2": {
        const below = randomQcow2(random, { clusterSize: 1024, virtualSize: 50 * CLUSTER });
        const top = randomQcow2(random, { clusterSize: CLUSTER, virtualSize: 64 * CLUSTER });
        return layeredDisk([top, below]);
      }
      case "sub-clusters over raw": {
        const raw = Buffer.concat([Buffer.alloc(9000), random.bytes(9000), Buffer.alloc(2001)]);
        return layeredDisk([randomSubclusters(random, 65536), rawLayer(raw)]);
      }
      default: {
        const raw = Buffer.concat([random.bytes(9000), Buffer.alloc(9001)]);
        const middle = randomQed(random, { clusterSize: 4096, virtualSize: 28_672 });
        const top = randomQcow2(random, { clusterSize: 2048, virtualSize: 65_536 });
        return layeredDisk([top, middle, rawLayer(raw)]);
      }
    }
  })();

  it("never takes anything for zeros that is not", () => {
    const zeros = new ZeroLookup(chain);
    for (let round = 0; round < 2000; round++) {
      const start = random.below(expected.length);
      const end = random.between(start + 1, Math.min(expected.length, start + 6000));
      for (const withPlace of [false, true]) {
        const count = zeros.zerosAt(start, end - start, withPlace);
        expect(isZero(expected.subarray(start, start + count))).toBe(true);
      }
      if (zeros.readsAsZero(start, end)) expect(isZero(expected.subarray(start, end))).toBe(true);
    }
  });

  it("knows whether the rest of a range is zeros, by its contents", () => {
    const zeros = new ZeroLookup(chain);
    for (let round = 0; round < 2000; round++) {
      const start = random.below(expected.length);
      const end = random.between(start + 1, Math.min(expected.length, start + 3000));
      const partStart = random.between(start, end - 1);
      const partEnd = random.between(partStart + 1, end);
      expect(zeros.restIsZero(start, partStart, partEnd, end)).toBe(
        isZero(expected.subarray(start, partStart)) && isZero(expected.subarray(partEnd, end)),
      );
    }
  });
});
