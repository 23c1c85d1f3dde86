/** Valid images with one of everything, which hostile-image tests then break in one place. */

import { deflate, zstdStore } from "./compressed-stream-builder.ts";
import { buildQcow2, type Qcow2Image, type Qcow2Options } from "./qcow2-builder.ts";
import { featureNameTable } from "./qcow2-header-builder.ts";
import type { Qcow2Cluster } from "./qcow2-tree-builder.ts";
import { buildQed, type QedImage, type QedOptions } from "./qed-builder.ts";
import { Random } from "./random.ts";

/** Kinds of qcow2 sample. */
export const QCOW2_SAMPLES = ["version 3", "version 2", "extended L2", "zstd"] as const;
export type Qcow2SampleName = (typeof QCOW2_SAMPLES)[number];

/** Guest clusters of every sample. */
export const SAMPLE_CLUSTERS = 16;

const random = new Random("hostile samples", 1);
const CONTENT = [0, 1, 2, 3].map(() => random.bytes(65536));
const TEXT = [0, 1].map(() => random.text(65536));

function content(index: number, clusterSize: number): Buffer {
  return (CONTENT[index] ?? Buffer.alloc(0)).subarray(0, clusterSize);
}

function text(index: number, clusterSize: number): Buffer {
  return (TEXT[index] ?? Buffer.alloc(0)).subarray(0, clusterSize);
}

function sampleOptions(name: Qcow2SampleName): Qcow2Options {
  switch (name) {
    case "version 3":
      return { clusterBits: 12 };
    case "version 2":
      return { clusterBits: 12, version: 2 };
    case "extended L2":
      return { clusterBits: 14, extendedL2: true };
    case "zstd":
      return { clusterBits: 12, compressionType: 1 };
  }
}

/**
 * A qcow2 image of 16 clusters: 0 and 6 data, 1 zero, 2 zero preallocated, 3 and 4 compressed (in version 2:
 * 1 and 2 unallocated), the rest unallocated; two snapshots, one with its own clusters; extensions.
 */
export function qcow2Sample(
  name: Qcow2SampleName = "version 3",
  more: Qcow2Options = {},
): Qcow2Image {
  const options = sampleOptions(name);
  const clusterSize = 2 ** (options.clusterBits ?? 16);
  const stream = (index: number): Buffer =>
    name === "zstd" ? zstdStore(text(index, clusterSize)) : deflate(text(index, clusterSize));
  const zeros: Record<number, Qcow2Cluster> =
    name === "version 2"
      ? {}
      : { 1: { kind: "zero" }, 2: { kind: "zero-preallocated", bytes: content(3, clusterSize) } };
  return buildQcow2({
    ...options,
    virtualSize: SAMPLE_CLUSTERS * clusterSize,
    clusters: {
      0: { kind: "data", bytes: content(0, clusterSize) },
      ...zeros,
      3: { kind: "compressed", stream: stream(0) },
      4: { kind: "compressed", stream: stream(1) },
      6: { kind: "data", bytes: content(1, clusterSize) },
    },
    snapshots: [
      { name: "own", clusters: { 0: { kind: "data", bytes: content(2, clusterSize) } } },
      { name: "shared" },
    ],
    extensions: [
      featureNameTable([
        { kind: 0, bit: 0, name: "dirty bit" },
        { kind: 0, bit: 60, name: "time travel" },
      ]),
      { type: 0x12345678, data: "unknown extension" },
    ],
    ...more,
  });
}

/** A QED image of 16 clusters of 4 KiB: 0 and 6 data, 1 zero, the rest unallocated. */
export function qedSample(more: QedOptions = {}): QedImage {
  const clusterSize = more.clusterSize ?? 4096;
  return buildQed({
    clusterSize,
    tableClusters: 2,
    virtualSize: SAMPLE_CLUSTERS * clusterSize,
    clusters: {
      0: { kind: "data", bytes: content(0, clusterSize) },
      1: { kind: "zero" },
      6: { kind: "data", bytes: content(1, clusterSize) },
    },
    ...more,
  });
}
