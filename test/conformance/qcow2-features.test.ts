// qcow2: refcount widths, lazy refcounts, preallocation, bitmaps and zero clusters of both kinds.

import { crashAfter } from "../support/crash-after.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { oddSize, scribble } from "../support/scribble.ts";
import { describeConformance, type Kitchen, type Recipe } from "./suite.ts";

const CLUSTER_SIZE = 65536;

async function scribbled(
  { path, random, patterns }: Kitchen,
  options: Readonly<Record<string, string | number>>,
  compressedClusters: number,
): Promise<void> {
  const clusterSize = Number(options["cluster_size"] ?? CLUSTER_SIZE);
  const size = oddSize(random, clusterSize, byScale(50, 300));
  await createImage(path, "qcow2", { size, options });
  await scribble(
    path,
    "qcow2",
    random,
    {
      size,
      clusterSize,
      kinds: ["write", "zero", "unmap", "write", "discard"],
      count: byScale(16, 80),
      compressedClusters,
    },
    patterns,
  );
}

const REFCOUNT_WIDTHS: Recipe[] = [1, 2, 4, 8, 16, 32, 64].map((bits) => ({
  name: `refcount-bits-${bits}`,
  format: "qcow2",
  make: (kitchen) => scribbled(kitchen, { refcount_bits: bits, cluster_size: 4096 }, 20),
}));

const PREALLOCATION: Recipe[] = ["off", "metadata", "falloc", "full"].flatMap((mode) =>
  ["off", "on"].map(
    (extendedL2): Recipe => ({
      name: `preallocation-${mode}-extended-l2-${extendedL2}`,
      format: "qcow2",
      make: (kitchen) =>
        scribbled(
          kitchen,
          { preallocation: mode, extended_l2: extendedL2, compression_type: "zlib" },
          0,
        ),
    }),
  ),
);

const ZEROS: readonly { readonly label: string; readonly commands: readonly string[] }[] = [
  { label: "plain", commands: ["write -q -z -u 64k 128k", "write -q -z -u 1M 512"] },
  {
    label: "preallocated",
    commands: ["write -q -P 7 0 512k", "write -q -z 64k 128k", "write -q -z 448k 64k"],
  },
  {
    label: "everywhere",
    commands: ["write -q -P 7 0 256k", "write -q -z 0 1049088"],
  },
  { label: "in-last-cluster", commands: ["write -q -P 9 960k 64k", "write -q -z 1M 512"] },
  {
    label: "rewritten",
    commands: ["write -q -P 9 0 256k", "write -q -z 0 256k", "write -q -P 5 66000 3000"],
  },
  { label: "data-in-last-cluster", commands: ["write -q -P 9 1M 512"] },
];

const ZERO_CLUSTERS: Recipe[] = ZEROS.map(({ label, commands }) => ({
  name: `zero-${label}`,
  format: "qcow2",
  make: async ({ path }) => {
    await createImage(path, "qcow2", { size: 1_049_088 });
    await qemuIo(path, "qcow2", commands);
  },
}));

const LAZY: Recipe[] = [
  {
    name: "lazy-refcounts-clean",
    format: "qcow2",
    make: (kitchen) => scribbled(kitchen, { lazy_refcounts: "on" }, 5),
  },
  {
    name: "lazy-refcounts-dirty",
    format: "qcow2",
    make: async (kitchen) => {
      await scribbled(kitchen, { lazy_refcounts: "on" }, 5);
      await crashAfter(kitchen.path, "qcow2", ["write -P 3 100k 300k", "flush"]);
    },
  },
];

const BITMAPS: Recipe[] = [
  {
    name: "bitmaps",
    format: "qcow2",
    make: async (kitchen) => {
      await scribbled(kitchen, {}, 5);
      const { path } = kitchen;
      await run("qemu-img", ["bitmap", "--add", "-f", "qcow2", "-g", "64k", path, "first"]);
      await qemuIo(path, "qcow2", ["write -q -P 3 128k 200k"]);
      await run("qemu-img", ["bitmap", "--add", "--disable", "-f", "qcow2", path, "second"]);
    },
  },
];

describeConformance("qcow2 refcount widths against qemu-img", REFCOUNT_WIDTHS);
describeConformance("qcow2 preallocation against qemu-img", PREALLOCATION);
describeConformance("qcow2 zero clusters against qemu-img", ZERO_CLUSTERS);
describeConformance("qcow2 lazy refcounts and bitmaps against qemu-img", [...LAZY, ...BITMAPS]);
