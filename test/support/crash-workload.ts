/** Random work for a disk: writes of all shapes, zeros, preallocation and flushes, as data that can be printed. */

import type { GrowthPreallocation } from "../../src/block/disk-resizer.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import type { Random } from "./random.ts";
import type { SparseFile } from "./recording-sparse-file.ts";

/** What the engine offers of a disk that is open for writing. */
export interface WritableDisk {
  readonly virtualSize: number;
  read(guestOffset: number, length: number, target: NativeBuffer, start: number): void;
  write(guestOffset: number, length: number, source: NativeBuffer, start: number): void;
  writeZeroes(guestOffset: number, length: number, how: { unmap: boolean }): void;
  preallocate(guestOffset: number, length: number): void;
  resize(size: number, preallocation: GrowthPreallocation): void;
  flush(): void;
  maintain(): void;
  close(): void;
}

export type DiskStep =
  | { readonly kind: "write"; readonly offset: number; readonly length: number; data: Buffer }
  | {
      readonly kind: "zeroes";
      readonly offset: number;
      readonly length: number;
      readonly unmap: boolean;
    }
  | { readonly kind: "preallocate"; readonly offset: number; readonly length: number }
  | { readonly kind: "read"; readonly offset: number; readonly length: number }
  /** `size` is of the disk: bytes, whole sectors. */
  | {
      readonly kind: "resize";
      readonly size: number;
      readonly preallocation: GrowthPreallocation;
    }
  | { readonly kind: "flush" }
  | { readonly kind: "maintain" };

export interface DiskShape {
  /** Bytes. */
  readonly virtualSize: number;
  readonly clusterSize: number;
  /** The size of the disk changes, up to this many times what it was. */
  readonly growth?: number;
  /** It never becomes less. */
  readonly growsOnly?: boolean;
}

/** No request of the kernel is longer. */
const REQUEST_MAX = 1024 * 1024;

/** More would fill a file system in memory. */
const PREALLOCATE_MAX = 16 * 1024 * 1024;

/** Requests longer than this are rare: they make the recording large. */
const USUAL_MAX = 192 * 1024;

/** Of what disks grow by; most of it is made when it is written to. */
const PREALLOCATIONS = ["off", "off", "off", "metadata", "falloc", "full"] as const;

/** How often each kind of step comes up. */
// biome-ignore format: a table reads in columns
const WEIGHTS = [
  ["write",       40],
  ["zero-write",   8],
  ["zeroes",      16],
  ["preallocate",  3],
  ["resize",       6],
  ["read",         6],
  ["flush",       14],
  ["maintain",     8],
] as const;
type StepName = (typeof WEIGHTS)[number][0];

/** The part of a disk that steps are drawn for. */
export interface DiskPart {
  readonly first: number;
  /** Behind the last byte. */
  readonly end: number;
}

/** Draws steps that meet each other often: most fall on a few clusters. */
export class StepDrawer {
  readonly #random: Random;
  readonly #clusterSize: number;
  /** Bytes that the disk may have; 0: its size stays. */
  readonly #sizeMax: number;
  readonly #growsOnly: boolean;
  #part: DiskPart;
  readonly #hotClusters: readonly number[];

  /** @param part default: the whole disk */
  constructor(
    random: Random,
    { virtualSize, clusterSize, growth = 0, growsOnly = false }: DiskShape,
    part: DiskPart = { first: 0, end: virtualSize },
  ) {
    this.#random = random;
    this.#clusterSize = clusterSize;
    this.#sizeMax = virtualSize * growth;
    this.#growsOnly = growsOnly;
    this.#part = part;
    const hot = [Math.floor(part.first / clusterSize), Math.floor((part.end - 1) / clusterSize)];
    for (let count = 0; count < 6; count++) hot.push(this.#anyCluster());
    this.#hotClusters = hot;
  }

  draw(): DiskStep {
    const random = this.#random;
    const name = drawName(random);
    switch (name) {
      case "flush":
      case "maintain":
        return { kind: name };
      case "resize":
        return this.#sizeMax === 0 ? { kind: "flush" } : this.#resize();
      case "write": {
        const range = this.#range();
        return { kind: "write", ...range, data: random.bytes(range.length) };
      }
      case "zero-write": {
        const range = this.#range();
        return { kind: "write", ...range, data: Buffer.alloc(range.length) };
      }
      case "zeroes":
        return { kind: "zeroes", ...this.#wideRange(), unmap: random.below(2) === 0 };
      case "preallocate": {
        const { offset, length } = this.#wideRange();
        return { kind: name, offset, length: Math.min(length, PREALLOCATE_MAX) };
      }
      case "read":
        return { kind: name, ...this.#range() };
    }
  }

  /** Any size, near the end of a cluster, or a little more or less than now. */
  #resize(): DiskStep {
    const random = this.#random;
    const sectors = [
      random.between(1, this.#sizeMax / 512),
      (random.between(1, Math.ceil(this.#sizeMax / this.#clusterSize)) * this.#clusterSize) / 512 +
        random.between(-1, 1),
      Math.floor(this.#part.end / 512) + random.between(-20, 40),
    ];
    const drawn = Math.max(1, sectors[random.below(3)] ?? 1) * 512;
    const size = this.#growsOnly ? Math.max(drawn, this.#part.end) : drawn;
    const grows = size > this.#part.end && !this.#growsOnly;
    const preallocation = grows ? random.pick(PREALLOCATIONS) : "off";
    this.#part = { first: 0, end: size };
    return { kind: "resize", size, preallocation };
  }

  #anyCluster(): number {
    const { first, end } = this.#part;
    return Math.floor((first + this.#random.below(end - first)) / this.#clusterSize);
  }

  /** Now and then a large part of the disk at once, which needs no data. */
  #wideRange(): { offset: number; length: number } {
    const random = this.#random;
    if (random.below(6) > 0) return this.#range();
    const { first, end } = this.#part;
    return this.#clip(
      first + random.below(end - first),
      random.between(1, Math.ceil((end - first) / 2)),
    );
  }

  #range(): { offset: number; length: number } {
    const random = this.#random;
    const clusterSize = this.#clusterSize;
    const cluster =
      random.below(4) > 0
        ? (this.#hotClusters[random.below(this.#hotClusters.length)] ?? 0)
        : this.#anyCluster();
    const start = cluster * clusterSize;
    const limit = random.below(30) === 0 ? REQUEST_MAX : USUAL_MAX;
    switch (random.below(6)) {
      // Whole clusters.
      case 0:
      case 1:
        return this.#clip(start, Math.min(clusterSize * random.between(1, 6), limit));
      // Sectors of one cluster or two.
      case 2:
      case 3: {
        const offset = start + random.below(clusterSize / 512) * 512;
        return this.#clip(offset, 512 * random.between(1, Math.min(clusterSize / 512, 64)));
      }
      // Bytes within about a sector.
      case 4:
        return this.#clip(start + random.below(clusterSize), random.between(1, 700));
      // Anything around the start of the cluster.
      default: {
        const offset = start - random.below(clusterSize);
        return this.#clip(offset, random.between(1, Math.min(3 * clusterSize, limit)));
      }
    }
  }

  #clip(offset: number, length: number): { offset: number; length: number } {
    const { first, end } = this.#part;
    const start = Math.min(Math.max(offset, first), end - 1);
    return { offset: start, length: Math.min(length, end - start) };
  }
}

function drawName(random: Random): StepName {
  let at = random.below(WEIGHTS.reduce((sum, [, weight]) => sum + weight, 0));
  for (const [name, weight] of WEIGHTS) {
    at -= weight;
    if (at < 0) return name;
  }
  return "flush";
}

/** Carries out steps on a disk. */
export class StepRunner {
  readonly #disk: WritableDisk;
  readonly #buffer = NativeBuffer.allocate(REQUEST_MAX);

  constructor(disk: WritableDisk) {
    this.#disk = disk;
  }

  /**
   * @param expected what the disk contains, for reads
   * @throws {Error} the disk reads as something else
   */
  run(step: DiskStep, expected: SparseFile): void {
    const disk = this.#disk;
    switch (step.kind) {
      case "write":
        this.#buffer.bytes.set(step.data);
        disk.write(step.offset, step.length, this.#buffer, 0);
        break;
      case "zeroes":
        disk.writeZeroes(step.offset, step.length, { unmap: step.unmap });
        break;
      case "preallocate":
        disk.preallocate(step.offset, step.length);
        break;
      case "read": {
        const actual = this.read(step.offset, step.length);
        const wanted = expected.bytesAt(step.offset, step.length);
        const at = actual.findIndex((byte, index) => byte !== wanted[index]);
        if (at >= 0) {
          const where = `0x${(step.offset + at).toString(16)}`;
          const found = actual.toString("hex", at, at + 16);
          throw new Error(`reads ${found} at ${where}, not ${wanted.toString("hex", at, at + 16)}`);
        }
        break;
      }
      case "resize":
        disk.resize(step.size, step.preallocation);
        break;
      case "flush":
        disk.flush();
        break;
      case "maintain":
        disk.maintain();
        break;
    }
  }

  read(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length; done += REQUEST_MAX) {
      const count = Math.min(length - done, REQUEST_MAX);
      this.#disk.read(offset + done, count, this.#buffer, 0);
      bytes.set(this.#buffer.bytes.subarray(0, count), done);
    }
    return bytes;
  }
}

/** What a step changes of a disk that has `content`: bytes, or how many become zeros. */
export function changeOf(
  step: DiskStep,
  content: SparseFile,
): { readonly offset: number; readonly bytes: Uint8Array | number } | undefined {
  switch (step.kind) {
    case "write":
      return { offset: step.offset, bytes: step.data };
    case "zeroes":
      return { offset: step.offset, bytes: step.length };
    case "resize": {
      // What is cut off, or what is new.
      const offset = Math.min(step.size, content.length);
      return { offset, bytes: Math.max(step.size, content.length) - offset };
    }
    default:
      return undefined;
  }
}

/** Changes a plain file as a step changes a disk. */
export function applyStep(step: DiskStep, content: SparseFile): void {
  if (step.kind === "resize") {
    content.setLength(step.size);
    return;
  }
  const change = changeOf(step, content);
  if (change === undefined) return;
  if (typeof change.bytes === "number") content.zero(change.offset, change.bytes);
  else content.write(change.offset, change.bytes);
}

/** One line on a step, for messages. */
export function describeStep(step: DiskStep): string {
  if (step.kind === "flush" || step.kind === "maintain") return step.kind;
  if (step.kind === "resize") return `resize 0x${step.size.toString(16)} ${step.preallocation}`;
  const where = `0x${step.offset.toString(16)}+0x${step.length.toString(16)}`;
  if (step.kind === "zeroes") return `zeroes ${where}${step.unmap ? " unmap" : ""}`;
  if (step.kind === "write") {
    const isZero = step.data.every((byte) => byte === 0);
    return `write ${where} ${isZero ? "zeros" : step.data.toString("hex", 0, 16)}`;
  }
  return `${step.kind} ${where}`;
}
