// Backing chains: depths, mixed formats, shorter and longer backing files, relative names, stated formats.

import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createImage, type ImageFormat, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { type ScribbleKind, scribble } from "../support/scribble.ts";
import { describeConformance, type Kitchen, type Recipe } from "./suite.ts";

interface Layer {
  readonly format: ImageFormat;
  /** Bytes. */
  readonly size: number;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly clusterSize?: number;
}

const KINDS: Readonly<Record<ImageFormat, readonly [ScribbleKind, ...ScribbleKind[]]>> = {
  raw: ["write", "unmap", "write"],
  qcow2: ["write", "zero", "write", "unmap", "discard"],
  qed: ["write", "zero", "write"],
};

/** Makes the layers from the base up, the last one at `path`; each names the one below absolutely. */
async function makeChain(kitchen: Kitchen, layers: readonly Layer[]): Promise<void> {
  const { path, directory, random, patterns } = kitchen;
  let backing: { readonly file: string; readonly format: ImageFormat } | undefined;
  for (const [index, { format, size, options = {}, clusterSize = 65536 }] of layers.entries()) {
    const isTop = index === layers.length - 1;
    const file = isTop ? path : join(directory, `layer-${index}.${format}`);
    const all = format === "raw" ? {} : { ...options, cluster_size: clusterSize };
    await createImage(file, format, {
      size,
      options: all,
      ...(backing === undefined ? {} : { backing }),
    });
    const plan = { size, clusterSize, kinds: KINDS[format], count: byScale(8, 40) };
    const compressedClusters = format === "qcow2" ? Math.floor(size / clusterSize / 8) : 0;
    await scribble(file, format, random, { ...plan, compressedClusters }, patterns);
    backing = { file, format };
  }
}

function chain(name: string, layers: readonly [Layer, ...Layer[]]): Recipe {
  const format = layers.at(-1)?.format ?? "raw";
  return { name, format, make: (kitchen) => makeChain(kitchen, layers) };
}

const SIZE = 2_500_096;

function ofDepth(depth: number): Recipe {
  const layer = { format: "qcow2", size: SIZE } as const;
  return chain(`depth-${depth}`, [layer, ...Array.from({ length: depth }, () => layer)]);
}

const MIXED: Recipe[] = [
  chain("qcow2-on-qed-on-raw", [
    { format: "raw", size: SIZE },
    { format: "qed", size: SIZE },
    { format: "qcow2", size: SIZE },
  ]),
  chain("qed-on-qcow2-on-qed", [
    { format: "qed", size: SIZE },
    { format: "qcow2", size: SIZE },
    { format: "qed", size: SIZE },
  ]),
  chain("v2-on-v3-on-v2", [
    { format: "qcow2", size: SIZE, options: { compat: "0.10" } },
    { format: "qcow2", size: SIZE, options: { compression_type: "zstd" } },
    { format: "qcow2", size: SIZE, options: { compat: "0.10" } },
  ]),
];

const DIFFERENT_SIZES: Recipe[] = [
  chain("shorter-backing", [
    { format: "qcow2", size: 1_000_448 },
    { format: "qcow2", size: SIZE },
  ]),
  chain("shorter-raw-backing", [
    { format: "raw", size: 700_416 },
    { format: "qcow2", size: SIZE },
  ]),
  chain("longer-backing", [
    { format: "qcow2", size: SIZE },
    { format: "qcow2", size: 1_000_448 },
  ]),
  chain("shorter-in-the-middle", [
    { format: "raw", size: SIZE },
    { format: "qcow2", size: 600_064 },
    { format: "qcow2", size: SIZE + 512 },
  ]),
  chain("longer-in-the-middle", [
    { format: "qcow2", size: 600_064 },
    { format: "qed", size: SIZE },
    { format: "qcow2", size: 1_500_160 },
  ]),
  chain("cluster-sizes", [
    { format: "qcow2", size: SIZE, clusterSize: 2_097_152 },
    { format: "qcow2", size: SIZE, clusterSize: 512 },
    { format: "qed", size: SIZE, clusterSize: 4096 },
    { format: "qcow2", size: SIZE, clusterSize: 262_144, options: { extended_l2: "on" } },
  ]),
];

/** Each layer lies in another directory and is named relative to the one above it. */
const RELATIVE: Recipe = {
  name: "relative-names",
  format: "qcow2",
  make: async ({ path, random, patterns }) => {
    const directory = dirname(path);
    const base = join(directory, "bases/deep/base.raw");
    const middle = join(directory, "middle/overlay.qcow2");
    await mkdir(dirname(base), { recursive: true });
    await mkdir(dirname(middle));
    const plan = { size: SIZE, clusterSize: 65536, count: 8, kinds: KINDS.qcow2 } as const;
    await createImage(base, "raw", { size: SIZE });
    await scribble(base, "raw", random, { ...plan, kinds: KINDS.raw }, patterns);
    await createImage(middle, "qcow2", {
      size: SIZE,
      backing: { file: "../bases/deep/base.raw", format: "raw" },
    });
    await scribble(middle, "qcow2", random, plan, patterns);
    await createImage(path, "qcow2", {
      size: SIZE,
      backing: { file: "middle/overlay.qcow2", format: "qcow2" },
    });
    await scribble(path, "qcow2", random, plan, patterns);
  },
};

/** The guest of a raw base wrote a qcow2 header into it: the stated format must win over the magic. */
function disguised(format: "qcow2" | "qed"): Recipe {
  return {
    name: `${format}-over-raw-with-magic`,
    format,
    make: async ({ path, directory, random }) => {
      const base = join(directory, "base.raw");
      const inner = join(directory, "inner.qcow2");
      await createImage(inner, "qcow2", { size: 50_000_384 });
      await qemuIo(inner, "qcow2", ["write -q -P 66 0 100k"]);
      const container = await readFile(inner);
      await writeFile(base, Buffer.concat([container, random.bytes(100_352)]));
      await createImage(path, format, { size: 1_000_448, backing: { file: base, format: "raw" } });
      await qemuIo(path, format, ["write -q -P 5 256k 1k"]);
    },
  };
}

/** QED cannot name any format but raw, so a qcow2 below it is found by its magic. */
const PROBED: Recipe = {
  name: "qed-over-probed-qcow2",
  format: "qed",
  make: async (kitchen) => {
    const { path, directory, random, patterns } = kitchen;
    const base = join(directory, "base.qcow2");
    const plan = { size: SIZE, clusterSize: 65536, count: 8, kinds: KINDS.qcow2 } as const;
    await createImage(base, "qcow2", { size: SIZE });
    await scribble(base, "qcow2", random, plan, patterns);
    await createImage(path, "qed", { size: SIZE, backing: { file: base, format: "qcow2" } });
    await scribble(path, "qed", random, { ...plan, kinds: KINDS.qed }, patterns);
  },
};

/** Snapshots of an overlay refer to the backing file too. */
const SNAPSHOTS_OVER_BACKING: Recipe = {
  name: "snapshots-over-backing",
  format: "qcow2",
  snapshots: ["first", "second"],
  make: async (kitchen) => {
    const { path, random, patterns } = kitchen;
    await makeChain(kitchen, [
      { format: "raw", size: SIZE },
      { format: "qcow2", size: SIZE },
    ]);
    const plan = { size: SIZE, clusterSize: 65536, count: 8, kinds: KINDS.qcow2 } as const;
    for (const name of ["first", "second"]) {
      await run("qemu-img", ["snapshot", "-q", "-c", name, path]);
      await scribble(path, "qcow2", random, plan, patterns);
    }
  },
};

describeConformance("backing chains of all depths against qemu-img", [
  ...[1, 2, 3, 4, 5, 10].map(ofDepth),
  ...MIXED,
]);
describeConformance("backing files of other sizes against qemu-img", DIFFERENT_SIZES);
describeConformance("names and formats of backing files against qemu-img", [
  RELATIVE,
  disguised("qcow2"),
  disguised("qed"),
  PROBED,
  SNAPSHOTS_OVER_BACKING,
]);
