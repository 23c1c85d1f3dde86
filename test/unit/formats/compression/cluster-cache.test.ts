/** The cache of decompressed clusters: resumption, eviction, failures, and several images at once. */

import { describe, expect, it } from "vitest";
import {
  ClusterCache,
  type CompressedClusters,
} from "../../../../src/formats/compression/cluster-cache.ts";
import type { ClusterDecoder } from "../../../../src/formats/compression/cluster-decoder.ts";
import { Inflater } from "../../../../src/formats/compression/inflater.ts";
import { EXTENT, Extent } from "../../../../src/formats/driver.ts";
import type { Storage } from "../../../../src/storage/storage.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";
import { deflate } from "../../../support/compressed-stream-builder.ts";
import { Random } from "../../../support/random.ts";
import { MemoryStorage } from "../../memory-storage.ts";

const CLUSTER = 16384;
const COUNT = 12;

/** Clusters of a file: what they hold, and where their streams are. */
interface CompressedFile {
  readonly storage: MemoryStorage;
  readonly contents: readonly Buffer[];
  readonly extents: readonly Extent[];
}

function makeFile(label: string): CompressedFile {
  const random = new Random(label);
  const contents = Array.from({ length: COUNT }, () => random.text(CLUSTER));
  const streams = contents.map((content) => deflate(content));
  let offset = 100;
  const extents = streams.map((stream) => {
    const extent = new Extent();
    extent.kind = EXTENT.compressed;
    extent.length = CLUSTER;
    extent.hostOffset = offset;
    extent.compressedBytes = stream.length + 37;
    offset += stream.length;
    return extent;
  });
  const bytes = Buffer.concat([Buffer.alloc(100, 0xff), ...streams, Buffer.alloc(100, 0xff)]);
  return { storage: new MemoryStorage(label, bytes), contents, extents };
}

/** An inflater that counts what it is asked for. */
class CountingInflater implements ClusterDecoder {
  readonly partial = true;
  readonly #inflater = new Inflater();
  begins = 0;
  produced = 0;

  begin(input: NativeBuffer, length: number): void {
    this.begins++;
    this.#inflater.begin(input, length);
  }

  produce(output: NativeBuffer, start: number, wanted: number): number {
    const count = this.#inflater.produce(output, start, wanted);
    this.produced += count;
    return count;
  }
}

const clusterOf = (storage: Storage): CompressedClusters => ({
  storage,
  compression: "zlib",
  clusterSize: CLUSTER,
});

interface Part {
  readonly skip: number;
  readonly length: number;
}

/** Reads a part of cluster `index` through the cache and compares it with what was compressed. */
function expectPart(
  cache: ClusterCache,
  file: CompressedFile,
  cluster: CompressedClusters,
  index: number,
  { skip, length }: Part,
): void {
  const extent = file.extents[index];
  const content = file.contents[index];
  if (extent === undefined || content === undefined) throw new Error(`cluster ${index}`);
  const target = NativeBuffer.allocate(length + 8);
  cache.read(cluster, extent, target, 4, skip, length);
  const expected = Buffer.concat([
    Buffer.alloc(4),
    content.subarray(skip, skip + length),
    Buffer.alloc(4),
  ]);
  expect(Buffer.from(target.bytes).equals(expected), `cluster ${index} from ${skip}`).toBe(true);
}

describe("ClusterCache", () => {
  it("decompresses no further than it is asked for, and goes on from there", () => {
    const file = makeFile("resume");
    const decoder = new CountingInflater();
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache({ zlib: decoder, zstd: decoder });
    expectPart(cache, file, cluster, 0, { skip: 0, length: 512 });
    expect(decoder.produced).toBe(512);
    expectPart(cache, file, cluster, 0, { skip: 100, length: 50 });
    expect(decoder.produced).toBe(512);
    expectPart(cache, file, cluster, 0, { skip: 4096, length: 4096 });
    expect(decoder.produced).toBe(8192);
    expectPart(cache, file, cluster, 0, { skip: 0, length: CLUSTER });
    expect(decoder).toMatchObject({ begins: 1, produced: CLUSTER });
    expect(file.storage.reads).toHaveLength(1);
  });

  it("bypasses itself for whole clusters that it does not hold", () => {
    const file = makeFile("whole");
    const decoder = new CountingInflater();
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache({ zlib: decoder, zstd: decoder });
    for (const index of [0, 0])
      expectPart(cache, file, cluster, index, { skip: 0, length: CLUSTER });
    expect(decoder.begins).toBe(2);
    expectPart(cache, file, cluster, 0, { skip: 0, length: 10 });
    expect(decoder.begins).toBe(3);
  });

  it("begins again where another stream was begun in between", () => {
    const file = makeFile("interleaved");
    const decoder = new CountingInflater();
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache({ zlib: decoder, zstd: decoder });
    expectPart(cache, file, cluster, 0, { skip: 0, length: 1000 });
    expectPart(cache, file, cluster, 1, { skip: 0, length: 1000 });
    // What is there already needs no decoder.
    expectPart(cache, file, cluster, 0, { skip: 10, length: 990 });
    expect(decoder.begins).toBe(2);
    expectPart(cache, file, cluster, 0, { skip: 900, length: 1000 });
    expectPart(cache, file, cluster, 2, { skip: 0, length: CLUSTER });
    expectPart(cache, file, cluster, 0, { skip: 1900, length: 1000 });
    expectPart(cache, file, cluster, 1, { skip: 5, length: 5000 });
  });

  it("keeps four clusters, and replaces the one that was used longest ago", () => {
    const file = makeFile("eviction");
    const decoder = new CountingInflater();
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache({ zlib: decoder, zstd: decoder });
    const read = (index: number): void =>
      expectPart(cache, file, cluster, index, { skip: 0, length: 100 });
    for (const index of [0, 1, 2, 3]) read(index);
    for (const index of [0, 1, 2, 3]) read(index);
    expect(decoder.begins).toBe(4);
    read(0);
    read(4);
    for (const index of [0, 2, 3, 4]) read(index);
    expect(decoder.begins).toBe(5);
    read(1);
    expect(decoder.begins).toBe(6);
  });

  it("reads any parts of any clusters of two images right", () => {
    const random = new Random("cluster cache");
    const files = [makeFile("first image"), makeFile("second image")].map((file) => ({
      file,
      cluster: clusterOf(file.storage),
    }));
    const cache = new ClusterCache();
    for (let round = 0; round < 600; round++) {
      const chosen = files[random.below(2)];
      if (chosen === undefined) continue;
      const skip = random.below(CLUSTER);
      const length = 1 + random.below(CLUSTER - skip);
      const part = random.below(8) === 0 ? { skip: 0, length: CLUSTER } : { skip, length };
      expectPart(cache, chosen.file, chosen.cluster, random.below(COUNT), part);
    }
  });

  it("grows its buffers for an image of larger clusters", () => {
    const cache = new ClusterCache();
    const small = makeFile("small clusters");
    for (let index = 0; index < 6; index++) {
      expectPart(cache, small, clusterOf(small.storage), index, {
        skip: 0,
        length: 10,
      });
    }
    const content = new Random("large cluster").text(8 * CLUSTER);
    const stream = deflate(content);
    const extent = new Extent();
    extent.compressedBytes = stream.length;
    extent.hostOffset = 0;
    const target = NativeBuffer.allocate(100);
    const cluster = {
      ...clusterOf(new MemoryStorage("large", stream)),
      clusterSize: 8 * CLUSTER,
    };
    cache.read(cluster, extent, target, 0, 8 * CLUSTER - 100, 100);
    expect(Buffer.from(target.bytes).equals(content.subarray(-100))).toBe(true);
  });

  it("serves two views of an image in turn: a snapshot shares clusters and file", () => {
    const file = makeFile("views");
    const active = clusterOf(file.storage);
    const snapshot = clusterOf(file.storage);
    const cache = new ClusterCache();
    expectPart(cache, file, snapshot, 5, { skip: 0, length: 4096 });
    expectPart(cache, file, active, 0, { skip: 0, length: 4096 });
    expectPart(cache, file, snapshot, 0, { skip: 4096, length: 4096 });
    expectPart(cache, file, active, 0, { skip: 8192, length: 4096 });
  });
});

describe("ClusterCache with damaged streams", () => {
  it("names the cluster, and how much of it there was", () => {
    const file = makeFile("damaged");
    const [extent] = file.extents;
    if (extent === undefined) throw new Error("no extent");
    extent.compressedBytes = 200;
    const cluster = clusterOf(file.storage);
    const target = NativeBuffer.allocate(CLUSTER);
    for (const length of [CLUSTER, CLUSTER - 1]) {
      expect(() => new ClusterCache().read(cluster, extent, target, 0, 0, length)).toThrow(
        expect.objectContaining({
          name: "CorruptionError",
          offset: 100,
          message: expect.stringMatching(
            /^damaged: compressed cluster at 0x64 \(200 bytes\) is damaged: \d+ of 16384 bytes$/,
          ),
        }),
      );
    }
  });

  it("fails again on the next read, and reads other clusters right", () => {
    const file = makeFile("damaged again");
    const extent = file.extents[1];
    if (extent !== undefined) extent.compressedBytes = 50;
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache();
    for (let round = 0; round < 3; round++) {
      expectPart(cache, file, cluster, 0, { skip: round * 1000, length: 1000 });
      expect(() => expectPart(cache, file, cluster, 1, { skip: 0, length: 4096 })).toThrow(
        /damaged/,
      );
    }
  });

  it("reads a cluster right after a read of its file has failed", () => {
    const file = makeFile("failing");
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache();
    file.storage.failing = true;
    for (const length of [100, CLUSTER]) {
      expect(() => expectPart(cache, file, cluster, 0, { skip: 0, length })).toThrow(
        /read at offset/,
      );
    }
    file.storage.failing = false;
    expectPart(cache, file, cluster, 0, { skip: 50, length: 100 });
  });

  it("does not go on with a stream that a failed read has overwritten", () => {
    const file = makeFile("overwritten");
    const cluster = clusterOf(file.storage);
    const cache = new ClusterCache();
    expectPart(cache, file, cluster, 0, { skip: 0, length: 100 });
    // Shorter than the first stream, so that there is room for it where that one is.
    const extent = file.extents[1];
    if (extent !== undefined) extent.compressedBytes = 1000;
    file.storage.failing = true;
    expect(() => expectPart(cache, file, cluster, 1, { skip: 0, length: 100 })).toThrow(
      /read at offset/,
    );
    file.storage.failing = false;
    expectPart(cache, file, cluster, 0, { skip: 100, length: 8000 });
  });
});
