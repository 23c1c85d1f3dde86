/** Small images of all kinds that writing treats differently, laid out by hand, and what they contain. */

import { deflate } from "../../support/compressed-stream-builder.ts";
import { type Qcow2Options, qcow2Bytes } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { type QedCluster, type QedOptions, qedBytes } from "../../support/qed-builder.ts";
import { Random } from "../../support/random.ts";
import type { DiskFiles } from "./writable-disk.ts";

export interface DiskKind {
  readonly name: string;
  readonly clusterSize: number;
  /** Bytes; of most kinds not whole clusters. */
  readonly virtualSize: number;
  /** The file of the image. */
  readonly file: string;
  readonly options: Qcow2Options;
  /** Of a QED image: these instead. */
  readonly qed?: QedOptions;
  /** Bytes of the raw backing file, or none. */
  readonly backingSize?: number;
  /** Cluster contents: none, of all kinds, or of all kinds but the first snapshot shares them. */
  readonly clusters: "none" | "mixed" | "shared";
}

const BACKING = { backingFile: "base.raw", backingFormat: "raw" } as const;

const kind = (
  name: string,
  clusterBits: number,
  clusters: DiskKind["clusters"],
  { backingSize, ...options }: Qcow2Options & { backingSize?: number } = {},
): DiskKind => {
  const clusterSize = 2 ** clusterBits;
  // Two L2 tables where clusters are small, and a last cluster that is cut short.
  const virtualSize = Math.min(80, 24 + 512 / clusterBits) * clusterSize - clusterSize + 512;
  const size = Math.floor(virtualSize / 512) * 512;
  return {
    name,
    clusterSize,
    virtualSize: size,
    file: "disk.qcow2",
    options: { clusterBits, virtualSize: size, ...options },
    clusters,
    ...(backingSize === undefined ? {} : { backingSize }),
  };
};

const qedKind = (
  name: string,
  clusters: DiskKind["clusters"],
  { backingSize, ...qed }: QedOptions & { clusterSize: number; backingSize?: number },
): DiskKind => {
  const virtualSize = 70 * qed.clusterSize - 3 * 512;
  const size = { clusterSize: qed.clusterSize, virtualSize };
  // QEMU takes no tables of one cluster.
  const options = { tableClusters: 2, virtualSize, ...qed };
  const backing = backingSize === undefined ? {} : { backingSize };
  return { name, file: "disk.qed", options: {}, qed: options, clusters, ...size, ...backing };
};

export const DISK_KINDS: readonly DiskKind[] = [
  kind("v3", 12, "none"),
  kind("v3 with contents", 12, "mixed"),
  kind("v2", 12, "mixed", { version: 2 }),
  kind("clusters of 512 bytes", 9, "mixed"),
  kind("refcounts of 1 bit", 12, "mixed", { refcountOrder: 0 }),
  kind("refcounts of 64 bits", 9, "mixed", { refcountOrder: 6 }),
  kind("a snapshot", 12, "shared", { snapshots: [{ name: "one" }] }),
  kind("a snapshot, v2", 10, "shared", { version: 2, snapshots: [{ name: "one" }] }),
  kind("sub-clusters", 14, "mixed", { extendedL2: true }),
  kind("sub-clusters over a backing file", 14, "mixed", {
    extendedL2: true,
    ...BACKING,
    backingSize: 123_000,
  }),
  kind("a shorter backing file", 12, "mixed", { ...BACKING, backingSize: 100_001 }),
  kind("a longer backing file", 12, "none", { ...BACKING, backingSize: 400_000 }),
  kind("a backing file, v2", 12, "none", { version: 2, ...BACKING, backingSize: 100_001 }),
  kind("a data file", 12, "none", { dataFile: "disk.data" }),
  { ...kind("raw", 12, "none"), name: "raw", file: "disk.raw" },
  qedKind("QED", "none", { clusterSize: 4096 }),
  qedKind("QED with contents", "mixed", { clusterSize: 4096 }),
  qedKind("QED, large tables", "mixed", {
    clusterSize: 8192,
    tableClusters: 16,
    headerClusters: 3,
  }),
  qedKind("QED over a shorter backing file", "mixed", {
    clusterSize: 4096,
    ...BACKING,
    backingSize: 100_001,
  }),
  qedKind("QED over a longer backing file", "none", {
    clusterSize: 4096,
    ...BACKING,
    backingSize: 400_000,
  }),
];

/** Disks whose tables grow soon: the L1 table, and the refcount table. */
export const GROWING_KINDS: Readonly<Record<"l1" | "refcounts", DiskKind>> = {
  l1: {
    name: "a short L1 table",
    clusterSize: 512,
    virtualSize: 200 * 1024,
    file: "disk.qcow2",
    options: { clusterBits: 9, virtualSize: 200 * 1024 },
    clusters: "none",
  },
  refcounts: {
    name: "a short refcount table",
    clusterSize: 512,
    virtualSize: 3 * 1024 * 1024,
    file: "disk.qcow2",
    // One table of 64 blocks, which count 64 clusters each.
    options: { clusterBits: 9, virtualSize: 3 * 1024 * 1024, refcountOrder: 6 },
    clusters: "none",
  },
};

/** What clusters of a kind are, and what is read of them. */
function contentsOf(
  { clusterSize, virtualSize, options, clusters }: DiskKind,
  random: Random,
  disk: Buffer,
): Record<number, Qcow2Cluster> {
  const result: Record<number, Qcow2Cluster> = {};
  if (clusters === "none") return result;
  const hasZeros = options.version !== 2;
  for (let index = 0; index * clusterSize < virtualSize; index++) {
    const bytes = random.text(clusterSize);
    const put = (content: Buffer): void => {
      content.copy(
        disk,
        index * clusterSize,
        0,
        Math.min(clusterSize, virtualSize - index * clusterSize),
      );
    };
    switch (random.below(8)) {
      case 0:
      case 1:
        result[index] = { kind: "data", bytes };
        put(bytes);
        break;
      case 2:
        // Compressed clusters share places on the host, which 1 bit cannot count.
        if (options.refcountOrder === 0) break;
        result[index] = { kind: "compressed", stream: deflate(bytes) };
        put(bytes);
        break;
      case 3:
        if (!hasZeros || options.extendedL2 === true) break;
        result[index] = { kind: random.pick(["zero", "zero-preallocated"]), bytes };
        put(Buffer.alloc(clusterSize));
        break;
      case 4:
        // All zeros, as data.
        result[index] = { kind: "data", bytes: Buffer.alloc(clusterSize) };
        put(Buffer.alloc(clusterSize));
        break;
      default:
        break;
    }
  }
  return result;
}

/** As `contentsOf`, of a QED image. */
function qedContentsOf(
  { clusterSize, virtualSize, clusters }: DiskKind,
  random: Random,
  disk: Buffer,
): Record<number, QedCluster> {
  const result: Record<number, QedCluster> = {};
  if (clusters === "none") return result;
  for (let index = 0; index * clusterSize < virtualSize; index++) {
    const offset = index * clusterSize;
    const kind = random.pick(["data", "data", "zeros", "zero", "none", "none"]);
    if (kind === "none") continue;
    const bytes = kind === "data" ? random.text(clusterSize) : Buffer.alloc(clusterSize);
    // Zeros may be data, too.
    result[index] = kind === "zero" ? { kind } : { kind: "data", bytes };
    bytes.copy(disk, offset, 0, Math.min(clusterSize, virtualSize - offset));
  }
  return result;
}

/** Writes the files of a kind; returns what its disk contains. */
export function putDisk(files: DiskFiles, diskKind: DiskKind): Buffer {
  const random = new Random(`disk ${diskKind.name}`);
  const disk = Buffer.alloc(diskKind.virtualSize);
  if (diskKind.backingSize !== undefined) {
    const backing = random.bytes(diskKind.backingSize);
    backing.fill(0, 20_000, 60_000);
    files.put("base.raw", backing);
    backing.copy(disk);
  }
  if (diskKind.file === "disk.raw") {
    files.put(diskKind.file, disk);
    return disk;
  }
  if (diskKind.qed !== undefined) {
    const clusters = qedContentsOf(diskKind, random, disk);
    files.put(diskKind.file, qedBytes({ ...diskKind.qed, clusters }));
    return disk;
  }
  const clusters = contentsOf(diskKind, random, disk);
  const { options } = diskKind;
  // QEMU takes the names of data files as they are, not from where the image is.
  const dataFile = options.dataFile && files.put("disk.data", disk);
  files.put(diskKind.file, qcow2Bytes({ ...options, dataFile, clusters }));
  return disk;
}
