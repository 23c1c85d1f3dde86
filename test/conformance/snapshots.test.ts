// Internal snapshots: several per image, of different disk sizes, under writes, zeros and compression.

import { type CreateOptions, createImage } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { scribble } from "../support/scribble.ts";
import { describeConformance, type Recipe } from "./suite.ts";

interface Variant {
  readonly label: string;
  readonly clusterSize: number;
  readonly options: Readonly<Record<string, string | number>>;
  /** Disk size at each snapshot, in clusters. */
  readonly sizes: readonly number[];
}

const VARIANTS: readonly Variant[] = [
  { label: "v3-growing", clusterSize: 65536, options: {}, sizes: [20, 35, 50] },
  { label: "v3-shrinking", clusterSize: 65536, options: {}, sizes: [50, 30, 10] },
  { label: "v2-same-size", clusterSize: 65536, options: { compat: "0.10" }, sizes: [30, 30, 30] },
  { label: "small-clusters", clusterSize: 512, options: {}, sizes: [300, 700, 500] },
  {
    label: "extended-l2",
    clusterSize: 65536,
    options: { extended_l2: "on", compression_type: "zstd" },
    sizes: [20, 40, 30],
  },
];

function recipe({ label, clusterSize, options, sizes }: Variant): Recipe {
  const snapshots = sizes.map((_, index) => `after-${index}`);
  return {
    name: label,
    format: "qcow2",
    snapshots,
    make: async ({ path, random, patterns }) => {
      const kinds: CreateOptions["options"] = { ...options, cluster_size: clusterSize };
      await createImage(path, "qcow2", { size: (sizes[0] ?? 1) * clusterSize, options: kinds });
      for (const [index, clusters] of sizes.entries()) {
        const size = clusters * clusterSize;
        if (clusters !== sizes[index - 1] && index > 0) {
          await run("qemu-img", ["resize", "-q", "--shrink", "-f", "qcow2", path, String(size)]);
        }
        const plan = {
          size,
          clusterSize,
          kinds: ["write", "zero", "unmap", "write", "discard"],
          count: byScale(15, 80),
          // Clusters that a snapshot shares cannot be compressed again.
          compressedClusters: index === 0 ? Math.floor(clusters / 3) : 0,
        } as const;
        await scribble(path, "qcow2", random, plan, patterns);
        await run("qemu-img", ["snapshot", "-q", "-c", `after-${index}`, path]);
      }
      const plan = { size: (sizes.at(-1) ?? 1) * clusterSize, clusterSize, count: 10 };
      await scribble(path, "qcow2", random, { ...plan, kinds: ["write", "unmap"] }, patterns);
    },
  };
}

describeConformance("internal snapshots against qemu-img", VARIANTS.map(recipe));
