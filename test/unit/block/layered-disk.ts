/**
 * Disks of several layers, laid out in memory, with a slow model of what they contain: one byte at a
 * time, from the top layer down.
 */

import { BackingChain } from "../../../src/block/backing-chain.ts";
import type { FormatImage } from "../../../src/formats/driver.ts";
import { RawImage } from "../../../src/formats/raw/raw-image.ts";
import { deflate } from "../../support/compressed-stream-builder.ts";
import { buildQcow2 } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { buildQed, type QedCluster } from "../../support/qed-builder.ts";
import type { Random } from "../../support/random.ts";
import { openQcow2, openQed } from "../formats/open-image.ts";
import { MemoryStorage } from "../memory-storage.ts";

/** One image, and what it says about each byte of its disk. */
export interface ModelledLayer {
  readonly image: FormatImage;
  /** The byte at this offset, or undefined: not allocated here. */
  readonly byteAt: (offset: number) => number | undefined;
}

interface LayerSize {
  readonly clusterSize: number;
  readonly virtualSize: number;
}

/** A qcow2 layer whose clusters are of random kinds. */
export function randomQcow2(
  random: Random,
  { clusterSize, virtualSize }: LayerSize,
): ModelledLayer {
  const clusters: Record<number, Qcow2Cluster> = {};
  const contents = new Map<number, Buffer>();
  for (let index = 0; index * clusterSize < virtualSize; index++) {
    const bytes = random.text(clusterSize);
    switch (random.below(6)) {
      case 0:
      case 1:
        clusters[index] = { kind: "data", bytes };
        contents.set(index, bytes);
        break;
      case 2:
        clusters[index] = { kind: "compressed", stream: deflate(bytes) };
        contents.set(index, bytes);
        break;
      case 3:
        clusters[index] = { kind: random.pick(["zero", "zero-preallocated"]), bytes };
        contents.set(index, Buffer.alloc(clusterSize));
        break;
      default:
        break;
    }
  }
  const clusterBits = Math.log2(clusterSize);
  const { bytes } = buildQcow2({ clusterBits, virtualSize, clusters });
  return { image: openQcow2(bytes), byteAt: lookIn(contents, clusterSize) };
}

/** A qcow2 layer with extended L2 entries, of clusters of 16 KiB. */
export function randomSubclusters(random: Random, virtualSize: number): ModelledLayer {
  const clusterSize = 16384;
  const clusters: Record<number, Qcow2Cluster> = {};
  const contents = new Map<number, Buffer>();
  for (let index = 0; index * clusterSize < virtualSize; index++) {
    const bytes = random.bytes(clusterSize);
    const allocated = random.u32();
    const zero = (random.u32() & ~allocated) >>> 0;
    clusters[index] = { kind: "subclusters", bytes, allocated, zero };
    for (let sub = 0; sub < 32; sub++) {
      const part = bytes.subarray(sub * 512, (sub + 1) * 512);
      const bit = 2 ** sub;
      if (Math.floor(allocated / bit) % 2 === 1) contents.set(index * 32 + sub, part);
      else if (Math.floor(zero / bit) % 2 === 1) contents.set(index * 32 + sub, Buffer.alloc(512));
    }
  }
  const { bytes } = buildQcow2({ clusterBits: 14, extendedL2: true, virtualSize, clusters });
  return { image: openQcow2(bytes), byteAt: lookIn(contents, 512) };
}

/** A QED layer whose clusters are of random kinds. */
export function randomQed(random: Random, { clusterSize, virtualSize }: LayerSize): ModelledLayer {
  const clusters: Record<number, QedCluster> = {};
  const contents = new Map<number, Buffer>();
  for (let index = 0; index * clusterSize < virtualSize; index++) {
    const bytes = random.bytes(clusterSize);
    const kind = random.below(3);
    if (kind === 0) {
      clusters[index] = { kind: "data", bytes };
      contents.set(index, bytes);
    } else if (kind === 1) {
      clusters[index] = { kind: "zero" };
      contents.set(index, Buffer.alloc(clusterSize));
    }
  }
  const { bytes } = buildQed({ clusterSize, tableClusters: 1, virtualSize, clusters });
  return { image: openQed(bytes), byteAt: lookIn(contents, clusterSize) };
}

/** A raw layer; of any length, also one that ends within a sector. */
export function rawLayer(bytes: Buffer): ModelledLayer {
  const image = new RawImage(new MemoryStorage("base.raw", bytes));
  return { image, byteAt: (offset) => bytes[offset] ?? 0 };
}

function lookIn(contents: ReadonlyMap<number, Buffer>, unit: number): ModelledLayer["byteAt"] {
  return (offset) => contents.get(Math.floor(offset / unit))?.[offset % unit];
}

/** A chain of these layers, and its whole disk by the slow model. */
export function layeredDisk(layers: readonly [ModelledLayer, ...ModelledLayer[]]): {
  readonly chain: BackingChain;
  readonly expected: Buffer;
} {
  const [top, ...below] = layers;
  const chain = new BackingChain([top.image, ...below.map(({ image }) => image)]);
  const expected = Buffer.alloc(top.image.virtualSize);
  for (let offset = 0; offset < expected.length; offset++) {
    expected[offset] = byteThrough(layers, offset);
  }
  return { chain, expected };
}

function byteThrough(layers: readonly ModelledLayer[], offset: number): number {
  for (const { image, byteAt } of layers) {
    // Past the end of a shorter backing file there are zeros, whatever is below it.
    if (offset >= image.virtualSize) return 0;
    const byte = byteAt(offset);
    if (byte !== undefined) return byte;
  }
  return 0;
}
