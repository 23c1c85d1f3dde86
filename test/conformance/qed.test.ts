// QED: all cluster and table sizes, zero clusters, backing files, and images that a crash left to be checked.

import { join } from "node:path";
import { crashAfter } from "../support/crash-after.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { byScale } from "../support/scale.ts";
import { oddSize, scribble } from "../support/scribble.ts";
import { describeConformance, type Recipe } from "./suite.ts";

interface Geometry {
  readonly clusterSize: number;
  readonly tableSize: number;
}

const MIB = 2 ** 20;

/**
 * The corners of what qemu-img can create and open: larger products overflow its own limit, and
 * tables of one cluster are legal but refused by QEMU 7.2 ("QED table offset is invalid").
 */
const CORNERS: readonly Geometry[] = [
  { clusterSize: 4096, tableSize: 2 },
  { clusterSize: 4096, tableSize: 16 },
  { clusterSize: 65536, tableSize: 2 },
  { clusterSize: 65536, tableSize: 4 },
  { clusterSize: 65536, tableSize: 16 },
  { clusterSize: MIB, tableSize: 2 },
  { clusterSize: 4 * MIB, tableSize: 2 },
];

const ALL: readonly Geometry[] = [4096, 8192, 16384, 32768, 65536, 131_072, 262_144, 524_288, MIB]
  .flatMap((clusterSize) => [2, 4, 8, 16].map((tableSize) => ({ clusterSize, tableSize })))
  .filter(({ clusterSize, tableSize }) => clusterSize * tableSize <= 4 * MIB);

function geometry({ clusterSize, tableSize }: Geometry): Recipe {
  return {
    name: `cluster-${clusterSize}-table-${tableSize}`,
    format: "qed",
    make: async ({ path, random, patterns }) => {
      // Small tables: more than one L2 table. Large clusters: few of them.
      const clusters =
        clusterSize === 4096 ? 2400 : Math.max(3, Math.floor((6 * MIB) / clusterSize));
      const size = oddSize(random, clusterSize, clusters);
      const options = { cluster_size: clusterSize, table_size: tableSize };
      await createImage(path, "qed", { size, options });
      // Zeros first: QED has zero clusters only where nothing was written.
      const zeros = [1, 2, clusters - 1].map(
        (index) => `write -q -z ${index * clusterSize} ${clusterSize}`,
      );
      await qemuIo(path, "qed", zeros);
      const plan = { size, clusterSize, kinds: ["write", "write", "zero"], count: 12 } as const;
      await scribble(path, "qed", random, plan, patterns);
    },
  };
}

function overBacking(format: "raw" | "qed"): Recipe {
  return {
    name: `over-${format}`,
    format: "qed",
    make: async ({ path, directory, random, patterns }) => {
      const size = oddSize(random, 65536, 40);
      const file = join(directory, `base.${format}`);
      const plan = { size, clusterSize: 65536, kinds: ["write", "zero"], count: 15 } as const;
      await createImage(file, format, { size: size - 100 * 512 });
      await scribble(file, format, random, { ...plan, size: size - 100 * 512 }, patterns);
      await createImage(path, "qed", { size, backing: { file, format } });
      await qemuIo(path, "qed", ["write -q -z 128k 64k", "write -q -z 1M 256k"]);
      await scribble(path, "qed", random, plan, patterns);
    },
  };
}

const NEED_CHECK: Recipe = {
  name: "need-check",
  format: "qed",
  make: async ({ path }) => {
    await createImage(path, "qed", { size: 5 * MIB });
    await crashAfter(path, "qed", ["write -P 3 100k 300k", "write -z 1M 128k", "flush"]);
  },
};

describeConformance("QED geometries against qemu-img", byScale(CORNERS, ALL).map(geometry));
describeConformance("QED backing files and unchecked images against qemu-img", [
  overBacking("raw"),
  overBacking("qed"),
  NEED_CHECK,
]);
