// External data files: guest data outside of the qcow2 file, raw or not.

import { join } from "node:path";
import { createImage } from "../support/qemu.ts";
import { byScale } from "../support/scale.ts";
import { oddSize, scribble } from "../support/scribble.ts";
import { describeConformance, type Recipe } from "./suite.ts";

interface Variant {
  readonly label: string;
  readonly clusterSize: number;
  readonly options: Readonly<Record<string, string | number>>;
}

const VARIANTS: readonly Variant[] = [
  { label: "plain", clusterSize: 65536, options: {} },
  { label: "raw", clusterSize: 65536, options: { data_file_raw: "on" } },
  { label: "small-clusters", clusterSize: 4096, options: {} },
  { label: "extended-l2", clusterSize: 65536, options: { extended_l2: "on" } },
  {
    label: "preallocated",
    clusterSize: 65536,
    options: { preallocation: "metadata" },
  },
];

function recipe({ label, clusterSize, options }: Variant): Recipe {
  return {
    name: `data-file-${label}`,
    format: "qcow2",
    make: async ({ path, directory, random, patterns }) => {
      const size = oddSize(random, clusterSize, byScale(40, 200));
      await createImage(path, "qcow2", {
        size,
        options: { ...options, cluster_size: clusterSize, data_file: join(directory, "data") },
      });
      const plan = {
        size,
        clusterSize,
        kinds: ["write", "zero", "unmap", "write", "discard"],
        count: byScale(20, 100),
      } as const;
      await scribble(path, "qcow2", random, plan, patterns);
    },
  };
}

describeConformance("external data files against qemu-img", VARIANTS.map(recipe));
