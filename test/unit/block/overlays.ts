/** Overlays of raw backing files, both laid out by a letter for each cluster. */

import { deflate } from "../../support/compressed-stream-builder.ts";
import { type Qcow2Options, qcow2Bytes } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { type QedCluster, qedBytes } from "../../support/qed-builder.ts";
import { Random } from "../../support/random.ts";
import type { DiskFiles } from "./writable-disk.ts";

export interface OverlayKind {
  readonly name: string;
  readonly file: "disk.qcow2" | "disk.qed";
  readonly clusterBits: number;
  readonly options?: Qcow2Options;
  /** Of the file of clusters: the image's own, or its data file. */
  readonly dataFile?: "disk.data";
}

const qcow2 = (name: string, clusterBits: number, options: Qcow2Options = {}): OverlayKind => ({
  name,
  file: "disk.qcow2",
  clusterBits,
  options,
});

/** Whose clusters are copied as a whole. */
export const OVERLAY_KINDS: readonly OverlayKind[] = [
  qcow2("clusters of 4096 bytes", 12),
  qcow2("clusters of 512 bytes", 9),
  qcow2("clusters of 64 KiB", 16),
  qcow2("clusters of 2 MiB", 21),
  qcow2("v2", 12, { version: 2 }),
  qcow2("v2, clusters of 512 bytes", 9, { version: 2 }),
  qcow2("sub-clusters", 14, { extendedL2: true }),
  qcow2("a snapshot", 12, { snapshots: [{ name: "one" }] }),
  qcow2("a snapshot, v2", 10, { version: 2, snapshots: [{ name: "one" }] }),
  qcow2("refcounts of 1 bit", 12, { refcountOrder: 0 }),
  { ...qcow2("a data file", 12), dataFile: "disk.data" },
  { name: "QED", file: "disk.qed", clusterBits: 12 },
];

export interface OverlayContents {
  /** D data, C compressed (data where there is no such thing), z zeros, anything else: nothing. */
  readonly clusters: string;
  /** D data, 0 zeros. */
  readonly backing: string;
  /** Bytes; default: whole clusters. */
  readonly virtualSize?: number | undefined;
  readonly backingSize?: number | undefined;
}

/** Writes an overlay and base.raw, its backing file; returns what its disk contains. */
export function putOverlay(files: DiskFiles, kind: OverlayKind, contents: OverlayContents): Buffer {
  const random = new Random(`overlay ${kind.name}`);
  const clusterSize = 2 ** kind.clusterBits;
  const { clusters, virtualSize = clusters.length * clusterSize } = contents;
  const backing = Buffer.concat(
    [...contents.backing].map((letter) =>
      letter === "D" ? repeatedBytes(random, clusterSize) : Buffer.alloc(clusterSize),
    ),
  );
  const { backingSize = backing.length } = contents;
  files.put("base.raw", backing.subarray(0, backingSize));
  const disk = Buffer.alloc(clusters.length * clusterSize);
  backing.copy(disk, 0, 0, backingSize);
  const own: Record<number, Qcow2Cluster> = {};
  const qedOwn: Record<number, QedCluster> = {};
  [...clusters].forEach((letter, index) => {
    const bytes = repeatedBytes(random, clusterSize);
    if (letter === "z") {
      own[index] = { kind: "zero" };
      qedOwn[index] = { kind: "zero" };
      disk.fill(0, index * clusterSize, (index + 1) * clusterSize);
      return;
    }
    if (letter !== "D" && letter !== "C") return;
    const isCompressed = letter === "C" && kind.dataFile === undefined;
    own[index] = isCompressed
      ? { kind: "compressed", stream: deflate(bytes) }
      : { kind: "data", bytes };
    qedOwn[index] = { kind: "data", bytes };
    bytes.copy(disk, index * clusterSize);
  });
  const over = { backingFile: "base.raw", backingFormat: "raw", virtualSize } as const;
  if (kind.file === "disk.qed") {
    files.put(kind.file, qedBytes({ ...over, clusterSize, tableClusters: 2, clusters: qedOwn }));
  } else {
    const flat = Buffer.alloc(disk.length);
    for (const [index, cluster] of Object.entries(own)) {
      if (cluster.kind === "data") flat.set(cluster.bytes, Number(index) * clusterSize);
    }
    const dataFile = kind.dataFile && files.put(kind.dataFile, flat.subarray(0, virtualSize));
    const { clusterBits, options } = kind;
    files.put(kind.file, qcow2Bytes({ ...over, clusterBits, dataFile, clusters: own, ...options }));
  }
  return disk.subarray(0, virtualSize);
}

/** Bytes that compress; no two sectors of a cluster are alike. */
function repeatedBytes(random: Random, size: number): Buffer {
  return Buffer.alloc(size, random.bytes(Math.min(size * 0.75, 8191)));
}

/** Overwrites a backing file: what is read of it from now on is not what it was. */
export function spoilBacking(files: DiskFiles): void {
  files.put("base.raw", Buffer.alloc(files.bytes("base.raw").length, 0xee));
}
