// qcow2: all cluster sizes in both versions, with every kind of cluster that the version has.

import { createImage } from "../support/qemu.ts";
import { byScale } from "../support/scale.ts";
import { oddSize, type ScribbleKind, scribble } from "../support/scribble.ts";
import { describeConformance, type Recipe } from "./suite.ts";

/** 512 bytes to 2 MiB. */
const CLUSTER_BITS = Array.from({ length: 13 }, (_, index) => index + 9);

/** Enough clusters for several L2 tables where those are small, and not too many bytes. */
function clusterCount(clusterSize: number): number {
  return Math.min(
    byScale(600, 3000),
    Math.max(7, Math.floor(byScale(6, 64) * 2 ** 20) / clusterSize),
  );
}

interface Variant {
  readonly label: string;
  readonly options: Readonly<Record<string, string>>;
  readonly kinds: readonly [ScribbleKind, ...ScribbleKind[]];
}

const VARIANTS: readonly Variant[] = [
  { label: "v2", options: { compat: "0.10" }, kinds: ["write", "discard", "write"] },
  {
    label: "v3",
    options: { compat: "1.1" },
    kinds: ["write", "zero", "unmap", "write", "discard"],
  },
  {
    label: "v3-zstd",
    options: { compat: "1.1", compression_type: "zstd" },
    kinds: ["write", "unmap"],
  },
];

function recipe(clusterBits: number, { label, options, kinds }: Variant): Recipe {
  const clusterSize = 2 ** clusterBits;
  return {
    name: `${label}-cluster-${clusterSize}`,
    format: "qcow2",
    make: async ({ path, random, patterns }) => {
      const clusters = Math.floor(clusterCount(clusterSize));
      const size = oddSize(random, clusterSize, clusters);
      await createImage(path, "qcow2", {
        size,
        options: { ...options, cluster_size: clusterSize },
      });
      const count = byScale(16, 100);
      const compressedClusters = Math.ceil(clusters / 4);
      const plan = { size, clusterSize, kinds, count, compressedClusters };
      await scribble(path, "qcow2", random, plan, patterns);
    },
  };
}

describeConformance(
  "qcow2 cluster sizes against qemu-img",
  CLUSTER_BITS.flatMap((bits) => VARIANTS.map((variant) => recipe(bits, variant))),
);
