// Ways in which people write to a device, each done to the device and, plainly, to the file that says what it must contain.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Random } from "./random.ts";
import { run } from "./run.ts";
import type { WriteImage } from "./write-images.ts";

/** Bytes of the file that parts are written from. */
const SOURCE_SIZE = 3_000_017;

export interface StepContext {
  readonly image: WriteImage;
  readonly device: string;
  readonly random: Random;
  /** A file of noise with runs of zeros in it. */
  readonly source: string;
}

export interface WriteStep {
  readonly name: string;
  readonly run: (context: StepContext) => Promise<void>;
}

/** Makes the file to write from. */
export async function makeSource(directory: string, random: Random): Promise<string> {
  const bytes = random.bytes(SOURCE_SIZE);
  for (let count = 0; count < 12; count++) {
    const length = random.pick([700, 5000, 70_000, 200_000]);
    const start = random.below(SOURCE_SIZE - length);
    bytes.fill(0, start, start + length);
  }
  const path = join(directory, "source");
  await writeFile(path, bytes);
  return path;
}

interface DdStep {
  readonly name: string;
  readonly blockSize: number;
  readonly blocks: number;
  readonly conv?: string;
  readonly oflag?: string;
  /** Where in the device: anywhere, or so that the last byte of the device is written. */
  readonly to?: "anywhere" | "the end";
}

/** Part of the source to a place in the device, by dd(1) with conv=notrunc. */
function dd({ name, blockSize, blocks, conv, oflag, to = "anywhere" }: DdStep): WriteStep {
  return {
    name,
    run: async ({ image, device, random, source }) => {
      const length = Math.min(blockSize * blocks, image.size, SOURCE_SIZE);
      const last = image.size - length;
      const offset = to === "the end" ? last : random.below(last + 1);
      const common = [
        ...[`if=${source}`, `bs=${blockSize}`, `count=${length}`, `seek=${offset}`, "status=none"],
        ...[`skip=${random.below(SOURCE_SIZE - length + 1)}`],
        "iflag=fullblock,skip_bytes,count_bytes",
      ];
      const oflags = oflag === undefined ? "seek_bytes" : `seek_bytes,${oflag}`;
      const convs = conv === undefined ? "notrunc" : `notrunc,${conv}`;
      await run("dd", [...common, `of=${device}`, `oflag=${oflags}`, `conv=${convs}`]);
      await run("dd", [...common, `of=${image.expected}`, "oflag=seek_bytes", `conv=${convs}`]);
    },
  };
}

/** Puts holes into a file: at its start, in its middle, at its end. */
async function punchHoles(path: string, length: number, random: Random): Promise<void> {
  const hole = Math.ceil(length / 7);
  for (const start of [0, random.between(hole, 5 * hole), length - hole]) {
    if (random.below(4) > 0) {
      await run("fallocate", ["-p", "-o", String(start), "-l", String(hole), path]);
    }
  }
}

/**
 * A command that truncates what it writes to, and then skips zeros. A device keeps its size and what
 * is behind, but what was skipped must not show what was there before.
 */
function truncating(
  name: string,
  holes: "with holes" | "without holes",
  command: (source: string, device: string) => readonly [string, ...string[]],
): WriteStep {
  return {
    name,
    run: async ({ image, device, random, source }) => {
      const part = join(image.directory, "part");
      const length = Math.min(image.size, random.between(1, SOURCE_SIZE));
      const head = [`if=${source}`, `of=${part}`, `count=${length}`, "iflag=count_bytes"];
      await run("dd", [...head, "bs=1M", "status=none"]);
      if (holes === "with holes") {
        await punchHoles(part, length, random);
      }
      const [program, ...args] = command(part, device);
      await run(program, args);
      await run("dd", [
        `if=${part}`,
        `of=${image.expected}`,
        ...["bs=1M", "conv=notrunc", "status=none"],
      ]);
    },
  };
}

/** A file as long as the device, with data here and there, copied over it by cp(1). */
function copyOfDisk(name: string, sparse: "auto" | "always" | "never"): WriteStep {
  return {
    name,
    run: async ({ image, device, random, source }) => {
      const disk = join(image.directory, "disk");
      await run("rm", ["-f", disk]);
      await run("truncate", ["-s", String(image.size), disk]);
      for (let count = 0; count < 4; count++) {
        const length = random.between(1, Math.min(100_000, image.size));
        const where = [`seek=${random.below(image.size - length + 1)}`, `count=${length}`];
        const how = ["bs=64k", "conv=notrunc", "iflag=count_bytes", "oflag=seek_bytes"];
        await run("dd", [`if=${source}`, `of=${disk}`, ...where, ...how, "status=none"]);
      }
      await run("cp", [`--sparse=${sparse}`, disk, device]);
      await run("cp", [disk, image.expected]);
    },
  };
}

/** All of them, in an order in which each finds both data and holes. */
export const WRITE_STEPS: readonly WriteStep[] = [
  dd({ name: "dd bs=1M", blockSize: 2 ** 20, blocks: 2 }),
  dd({ name: "dd bs=4096", blockSize: 4096, blocks: 50 }),
  dd({ name: "dd bs=511", blockSize: 511, blocks: 40 }),
  dd({ name: "dd bs=7777", blockSize: 7777, blocks: 40 }),
  dd({ name: "dd bs=1", blockSize: 1, blocks: 30 }),
  dd({ name: "dd bs=100000 up to the end", blockSize: 100_000, blocks: 3, to: "the end" }),
  dd({ name: "dd conv=sparse", blockSize: 4096, blocks: 400, conv: "sparse" }),
  dd({ name: "dd conv=fsync", blockSize: 65536, blocks: 5, conv: "fsync" }),
  dd({ name: "dd conv=fdatasync", blockSize: 10_000, blocks: 5, conv: "fdatasync" }),
  copyOfDisk("cp --sparse=always of a whole disk", "always"),
  dd({ name: "dd oflag=direct bs=4096", blockSize: 4096, blocks: 60, oflag: "direct" }),
  dd({ name: "dd oflag=direct bs=512", blockSize: 512, blocks: 60, oflag: "direct" }),
  dd({ name: "dd oflag=direct bs=1M", blockSize: 2 ** 20, blocks: 2, oflag: "direct" }),
  dd({
    name: "dd oflag=direct bs=33333 up to the end",
    ...{ blockSize: 33_333, blocks: 4, oflag: "direct", to: "the end" },
  }),
  dd({ name: "dd oflag=dsync", blockSize: 30_000, blocks: 3, oflag: "dsync" }),
  dd({ name: "dd oflag=sync", blockSize: 4096, blocks: 3, oflag: "sync" }),
  dd({ name: "dd oflag=direct,sync", blockSize: 65536, blocks: 2, oflag: "direct,sync" }),
  truncating("dd without conv=notrunc", "with holes", (source, device) => [
    "dd",
    ...[`if=${source}`, `of=${device}`, "bs=50000", "status=none"],
  ]),
  truncating("cp", "without holes", (source, device) => ["cp", source, device]),
  truncating("cp of a sparse file", "with holes", (source, device) => ["cp", source, device]),
  truncating("cp --sparse=never", "with holes", (source, device) => [
    ...(["cp", "--sparse=never", source, device] as const),
  ]),
  truncating("cp --sparse=always", "with holes", (source, device) => [
    ...(["cp", "--sparse=always", source, device] as const),
  ]),
  truncating("cat", "with holes", (source, device) => [
    "sh",
    "-c",
    'cat "$0" > "$1"',
    source,
    device,
  ]),
  copyOfDisk("cp of a whole disk", "auto"),
  copyOfDisk("cp --sparse=never of a whole disk", "never"),
];
