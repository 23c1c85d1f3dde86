// Compressed clusters: both compression types, as qemu-img convert -c and as single writes make them.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createImage, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { oddSize, scribble } from "../support/scribble.ts";
import { describeConformance, type Kitchen, type Recipe } from "./suite.ts";

const CLUSTER_SIZES = byScale(
  [512, 4096, 65536, 2_097_152],
  [512, 1024, 4096, 16384, 65536, 262_144, 2_097_152],
);

/** A source that changes between text, noise and zeros in pieces of all sizes, so that ratios differ. */
async function writeMixedSource({ random }: Kitchen, file: string, size: number): Promise<void> {
  const bytes = Buffer.alloc(size);
  for (let offset = 0; offset < size; ) {
    const length = Math.min(random.between(1, Math.max(2, Math.floor(size / 20))), size - offset);
    const kind = random.below(4);
    if (kind > 0) {
      bytes.set(kind === 1 ? random.bytes(length) : random.text(length), offset);
    }
    offset += length;
  }
  await writeFile(file, bytes);
}

function converted(type: "zlib" | "zstd", clusterSize: number, extendedL2: boolean): Recipe {
  return {
    name: `converted-${type}-${clusterSize}${extendedL2 ? "-extended-l2" : ""}`,
    format: "qcow2",
    make: async (kitchen) => {
      const source = join(kitchen.directory, "source");
      const clusters = Math.min(400, Math.max(8, Math.floor(4_000_000 / clusterSize)));
      await writeMixedSource(kitchen, source, oddSize(kitchen.random, clusterSize, clusters));
      const options =
        `cluster_size=${clusterSize},compression_type=${type}` +
        `${extendedL2 ? ",extended_l2=on" : ""}`;
      const args = ["-c", "-f", "raw", "-O", "qcow2", "-o", options, source, kitchen.path];
      await run("qemu-img", ["convert", ...args]);
    },
  };
}

function written(
  label: string,
  clusterSize: number,
  options: Readonly<Record<string, string | number>>,
): Recipe {
  return {
    name: `written-${label}`,
    format: "qcow2",
    make: async ({ path, random, patterns }) => {
      const clusters = byScale(60, 300);
      const size = oddSize(random, clusterSize, clusters);
      await createImage(path, "qcow2", {
        size,
        options: { ...options, cluster_size: clusterSize },
      });
      const plan = {
        size,
        clusterSize,
        kinds: ["write", "unmap", "write", "zero"],
        count: byScale(8, 40),
        compressedClusters: Math.floor(clusters / 2),
      } as const;
      await scribble(path, "qcow2", random, plan, patterns);
    },
  };
}

/** Many tiny streams in one host cluster, and a last cluster that the disk does not fill. */
const SHARED_HOST_CLUSTERS: Recipe[] = (["zlib", "zstd"] as const).map((type) => ({
  name: `shared-host-clusters-${type}`,
  format: "qcow2",
  make: async ({ path }) => {
    const size = 64 * 65536 + 1536;
    await createImage(path, "qcow2", { size, options: { compression_type: type } });
    const commands = Array.from(
      { length: 64 },
      (_, index) => `write -q -c -P ${index + 1} ${index * 65536} 65536`,
    );
    await qemuIo(path, "qcow2", [...commands, `write -q -c -P 99 ${64 * 65536} 1536`]);
  },
}));

describeConformance("images of qemu-img convert -c against qemu-img", [
  ...(["zlib", "zstd"] as const).flatMap((type) =>
    CLUSTER_SIZES.map((clusterSize) => converted(type, clusterSize, false)),
  ),
  converted("zlib", 65536, true),
  converted("zstd", 16384, true),
]);
describeConformance("images with compressed writes against qemu-img", [
  written("zlib", 65536, {}),
  written("zstd", 65536, { compression_type: "zstd" }),
  written("one-bit-refcounts", 16384, { refcount_bits: 1 }),
  written("v2", 32768, { compat: "0.10" }),
  written("extended-l2", 65536, { extended_l2: "on" }),
  ...SHARED_HOST_CLUSTERS,
]);
