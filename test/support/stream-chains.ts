// Images on top of chains of mixed formats and sizes, to be streamed, and what their disks contain.

import { join } from "node:path";
import { expect } from "vitest";
import { asRecord } from "./json.ts";
import { convertToRaw, createImage, type ImageFormat, imageInfo } from "./qemu.ts";
import { Random } from "./random.ts";
import { run } from "./run.ts";
import { makePatterns, type ScribblePlan, scribble } from "./scribble.ts";
import { expectClean, expectDisk } from "./write-images.ts";

const MIB = 2 ** 20;
const SECTOR = 512;

/** What streams into itself. */
export interface StreamTop {
  readonly name: string;
  readonly format: "qcow2" | "qed";
  readonly clusterSize: number;
  readonly options?: Readonly<Record<string, string | number>>;
}

export const STREAM_TOPS = [
  { name: "v3", format: "qcow2", clusterSize: 65536 },
  { name: "v2", format: "qcow2", clusterSize: 65536, options: { compat: "0.10" } },
  { name: "v3-4k", format: "qcow2", clusterSize: 4096 },
  { name: "extended-l2", format: "qcow2", clusterSize: 131072, options: { extended_l2: "on" } },
  { name: "qed", format: "qed", clusterSize: 16384 },
] as const satisfies readonly StreamTop[];

interface BelowPlan {
  readonly name: string;
  readonly format: ImageFormat;
  /** Of the size of the top. */
  readonly part: number;
  readonly clusterSize: number;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly compressed?: boolean;
}

/** From the lowest up: the second one is the shortest, and hides the end of the lowest. */
const BELOW = [
  { name: "base.raw", format: "raw", part: 1.1, clusterSize: 65536 },
  { name: "low.qed", format: "qed", part: 0.6, clusterSize: 32768 },
  {
    name: "mid.qcow2",
    format: "qcow2",
    part: 0.8,
    clusterSize: 16384,
    options: { compat: "0.10" },
  },
  { name: "high.qcow2", format: "qcow2", part: 0.9, clusterSize: 65536, compressed: true },
] as const satisfies readonly BelowPlan[];

/** An image, what is below it, and what it must contain. */
export class StreamChain {
  readonly directory: string;
  readonly image: string;
  readonly format: ImageFormat;
  /** A raw file with the bytes of the disk, by qemu-img. */
  readonly expected: string;
  /** The names of the images below, the nearest first. */
  readonly below: readonly string[] = BELOW.map(({ name }) => name).toReversed();
  readonly #sums: string;

  constructor(directory: string, image: string, format: ImageFormat, sums: string) {
    this.directory = directory;
    this.image = image;
    this.format = format;
    this.expected = join(directory, "expected.raw");
    this.#sums = sums;
  }

  /** The path of an image below, the nearest first. */
  pathBelow(index: number): string {
    return join(this.directory, this.below[index] ?? "");
  }

  /** The image has its bytes and is clean, has that backing file, and those below are what they were. */
  async expectStreamed(backing: string | undefined): Promise<void> {
    await this.expectWhole();
    await expectClean(this.image, this.format);
    const info = asRecord(await imageInfo([this.image]));
    expect(info["backing-filename"]).toBe(backing);
  }

  /** A device shows the bytes of the image, and those below are what they were. */
  async expectWholeOf(device: string): Promise<void> {
    await run("cmp", [device, this.expected]);
    expect(await sumsOf(this.directory), "the images below").toBe(this.#sums);
  }

  /** The image has its bytes, and those below are what they were. */
  async expectWhole(): Promise<void> {
    await expectDisk(this.image, this.format, this.expected);
    expect(await sumsOf(this.directory), "the images below").toBe(this.#sums);
  }
}

async function sumsOf(directory: string): Promise<string> {
  const files = BELOW.map(({ name }) => join(directory, name));
  return (await run("sha256sum", files)).stdout;
}

/** Makes an image of about `size` bytes, with four below it, in an empty directory. */
export async function makeStreamChain(
  directory: string,
  top: StreamTop,
  size = 6 * MIB,
): Promise<StreamChain> {
  const random = new Random(`stream ${top.name}`);
  const patterns = await makePatterns(directory, random);
  let backing: { file: string; format: ImageFormat } | undefined;
  const add = async (
    name: string,
    plan: Omit<BelowPlan, "name" | "part">,
    bytes: number,
    count: number,
  ): Promise<void> => {
    const { format, clusterSize, options = {}, compressed = false } = plan;
    const path = join(directory, name);
    await createImage(path, format, {
      size: bytes,
      options: { ...(format === "raw" ? {} : { cluster_size: clusterSize }), ...options },
      ...(backing === undefined ? {} : { backing }),
    });
    const work: ScribblePlan = {
      size: bytes,
      clusterSize,
      kinds: format === "raw" ? ["write"] : ["write", "zero", "write", "discard"],
      count,
      compressedClusters: compressed ? 12 : 0,
    };
    await scribble(path, format, random, work, patterns);
    backing = { file: name, format };
  };
  for (const { name, part, ...plan } of BELOW) {
    await add(name, plan, Math.ceil((size * part) / SECTOR) * SECTOR, 24);
  }
  const image = join(directory, `top.${top.format}`);
  await add(`top.${top.format}`, top, size + SECTOR * random.below(100), 8);
  await convertToRaw(image, top.format, join(directory, "expected.raw"));
  return new StreamChain(directory, image, top.format, await sumsOf(directory));
}
