/** Compressed clusters as qemu-img writes them, found by walking its tables by hand. */

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ClusterDecoder } from "../../../../src/formats/compression/cluster-decoder.ts";
import { Inflater } from "../../../../src/formats/compression/inflater.ts";
import { ZstdDecoder } from "../../../../src/formats/compression/zstd-decoder.ts";
import { NativeBuffer } from "../../../../src/syscalls/native-buffer.ts";
import { Random } from "../../../support/random.ts";
import { run } from "../../../support/run.ts";
import { withScratch } from "../../../support/scratch.ts";

const hasQemuImg = spawnSync("qemu-img", ["--version"]).status === 0;
const COUNT = 12;

/** The streams of an image, by guest cluster, as far as they may reach. */
function streamsOf(image: Buffer, clusterBits: number): Map<number, Buffer> {
  const streams = new Map<number, Buffer>();
  const l1 = Number(image.readBigUInt64BE(40));
  const l2 = Number(image.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  const shift = BigInt(62 - (clusterBits - 8));
  for (let cluster = 0; cluster < COUNT; cluster++) {
    const entry = image.readBigUInt64BE(l2 + cluster * 8);
    if (((entry >> 62n) & 1n) === 0n) continue;
    const offset = Number(entry & ((1n << shift) - 1n));
    const sectors = Number((entry & ((1n << 62n) - 1n)) >> shift) + 1;
    const stream = Buffer.alloc(sectors * 512 - (offset % 512));
    image.copy(stream, 0, offset);
    streams.set(cluster, stream);
  }
  return streams;
}

/** A disk of text, with one cluster of one byte and one that is short. */
function diskContent(clusterSize: number): Buffer {
  const random = new Random(`qemu clusters ${clusterSize}`);
  const disk = random.text(COUNT * clusterSize - 1024);
  disk.fill(0x77, clusterSize, 2 * clusterSize);
  return disk;
}

const SAMPLES: readonly { type: string; name: string; create: () => ClusterDecoder }[] = [
  { type: "zlib", name: "zlib", create: () => new Inflater() },
  { type: "zstd", name: "libzstd", create: () => new ZstdDecoder() },
];

describe.skipIf(!hasQemuImg).each(SAMPLES)(
  "clusters that qemu-img compressed, by $name",
  ({ type, create }) => {
    it.each([12, 16, 19])("hold what was converted, with cluster_bits %i", async (clusterBits) => {
      await withScratch("qemu-clusters", async (directory) => {
        const clusterSize = 2 ** clusterBits;
        const disk = diskContent(clusterSize);
        const [raw, compressed] = [join(directory, "disk.raw"), join(directory, "disk.qcow2")];
        fs.writeFileSync(raw, disk);
        const options = `cluster_size=${clusterSize},compression_type=${type}`;
        await run("qemu-img", [
          "convert",
          "-c",
          "-f",
          "raw",
          "-O",
          "qcow2",
          "-o",
          options,
          raw,
          compressed,
        ]);
        const streams = streamsOf(fs.readFileSync(compressed), clusterBits);
        expect(streams.size).toBe(COUNT);
        const decoder = create();
        for (const [cluster, stream] of streams) {
          const input = NativeBuffer.allocate(stream.length);
          input.bytes.set(stream);
          const output = NativeBuffer.allocate(clusterSize);
          decoder.begin(input, stream.length);
          expect(decoder.produce(output, 0, clusterSize), `cluster ${cluster}`).toBe(clusterSize);
          const expected = Buffer.alloc(clusterSize);
          disk.copy(expected, 0, cluster * clusterSize);
          expect(Buffer.from(output.bytes).equals(expected), `cluster ${cluster}`).toBe(true);
        }
      });
    });
  },
);
