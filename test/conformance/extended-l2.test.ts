// Extended L2 entries: sub-clusters that are data, zero or neither, alone and over a backing file.

import { join } from "node:path";
import { createImage } from "../support/qemu.ts";
import { byScale } from "../support/scale.ts";
import { oddSize, scribble } from "../support/scribble.ts";
import { describeConformance, type Recipe } from "./suite.ts";

const CLUSTER_SIZES = byScale(
  [16384, 65536, 2_097_152],
  [16384, 32768, 65536, 131_072, 1_048_576, 2_097_152],
);

interface Variant {
  readonly label: string;
  readonly type: "zlib" | "zstd";
  readonly compressed: boolean;
  readonly backing: boolean;
}

const VARIANTS: readonly Variant[] = [
  { label: "alone", type: "zlib", compressed: false, backing: false },
  { label: "compressed", type: "zlib", compressed: true, backing: false },
  { label: "zstd-over-backing", type: "zstd", compressed: true, backing: true },
  { label: "over-backing", type: "zlib", compressed: false, backing: true },
];

function recipe(clusterSize: number, { label, type, compressed, backing }: Variant): Recipe {
  return {
    name: `${clusterSize}-${label}`,
    format: "qcow2",
    make: async ({ path, directory, random, patterns }) => {
      const clusters = clusterSize > 1_000_000 ? 6 : byScale(30, 200);
      const size = oddSize(random, clusterSize, clusters);
      const base = join(directory, "base.qcow2");
      const plan = { size, clusterSize, count: byScale(30, 150) };
      if (backing) {
        await createImage(base, "qcow2", { size });
        await scribble(base, "qcow2", random, { ...plan, kinds: ["write", "unmap"] }, patterns);
      }
      await createImage(path, "qcow2", {
        size,
        options: { cluster_size: clusterSize, extended_l2: "on", compression_type: type },
        ...(backing ? { backing: { file: base, format: "qcow2" } } : {}),
      });
      await scribble(
        path,
        "qcow2",
        random,
        {
          ...plan,
          kinds: ["write", "zero", "unmap", "write", "discard"],
          zeroUnit: clusterSize / 32,
          compressedClusters: compressed ? Math.floor(clusters / 4) : 0,
        },
        patterns,
      );
    },
  };
}

describeConformance(
  "extended L2 entries against qemu-img",
  CLUSTER_SIZES.flatMap((size) => VARIANTS.map((variant) => recipe(size, variant))),
);
