/**
 * Calls of the host that fail, each in turn, while an operation changes the structure of an image: nothing but leaks is left,
 * which the next writer clears up, and the disk is what it was, or what it is to be.
 */

import { mkdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Disk } from "../../src/block/disk.ts";
import { StreamJob } from "../../src/block/stream-job.ts";
import { setBackingFile } from "../../src/formats/formats.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { openRecorded, recoverInPlace, USUAL_POLICY } from "../support/crash-engine.ts";
import {
  contentOf,
  IMAGE_NAME,
  imageFiles,
  makeImage,
  mustQemuImg,
  qemuImg,
} from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { type FailingWorld, failEach, tolerate } from "../support/failing-calls.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import {
  type FaultHook,
  type RecordingLog,
  RecordingStorage,
} from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

/** Calls of each operation that fail in one way. */
const FAILING = byScale(2, 120);
const MIB = 2 ** 20;
/** Exit codes of qemu-img check: sound, or leaked clusters. */
const CLEAN = [0];
const CLEAN_OR_LEAKS = [0, 3];

/** What an operation works on. */
interface Open {
  readonly disk: Disk;
  /** The image's file, for what is done beside the disk. */
  readonly storage: RecordingStorage;
}

interface Operation {
  readonly name: string;
  readonly recipe: Omit<ImageRecipe, "name">;
  /** Before it: done by QEMU. */
  prepare?(directory: string): Promise<void>;
  run(open: Open): void;
  /** What the disk may be afterwards. */
  expectDisk(found: Buffer, before: Buffer, label: string): void;
  /** What else must hold. */
  expectMore?(path: string, label: string): Promise<void>;
}

const V3 = { format: "qcow2", group: "special", clusterSize: 512, virtualSize: 2 * MIB } as const;

function expectSame(found: Buffer, before: Buffer, label: string): void {
  expect(found.equals(before), label).toBe(true);
}

/** It has one of two sizes; what is new is zeros, and what both have is the same. */
function expectSize(size: number): Operation["expectDisk"] {
  return (found, before, label) => {
    expect([before.length, size], label).toContain(found.length);
    const common = Math.min(before.length, size);
    expectSame(found.subarray(0, common), before.subarray(0, common), label);
    if (size < before.length) return;
    expect(
      found.subarray(common).every((byte) => byte === 0),
      label,
    ).toBe(true);
  };
}

const BITMAP_NAMES = ["changed", "emptied", "gone", "off", "on"] as const;

async function addBitmaps(directory: string): Promise<void> {
  for (const name of BITMAP_NAMES) {
    const isOff = name === "on" ? ["--disable"] : [];
    const add = ["bitmap", "--add", ...isOff, "-g", "512", IMAGE_NAME, name];
    await mustQemuImg(directory, add);
  }
}

/** Those that may be used are as before or as afterwards: none is marked but the one that was merged into. */
async function expectBitmaps(path: string, label: string): Promise<void> {
  for (const { name, inUse, auto, set } of (await readBitmaps(path)) ?? []) {
    expect([...BITMAP_NAMES, "new"], label).toContain(name);
    if (inUse) continue;
    expect(set, `${label}: ${name}`).toEqual([]);
    if (!["off", "on"].includes(name)) expect(auto, `${label}: ${name}`).toBe(true);
  }
}

const OPERATIONS: readonly Operation[] = [
  {
    name: "a larger disk, whose L1 table moves",
    recipe: { ...V3, content: "some" },
    run: ({ disk }) => disk.resize(18 * MIB),
    expectDisk: expectSize(18 * MIB),
  },
  {
    name: "a larger disk over a longer backing file",
    recipe: { ...V3, clusterSize: 4096, backing: { format: "raw", size: 3 * MIB }, snapshots: 1 },
    run: ({ disk }) => disk.resize(4 * MIB),
    expectDisk: expectSize(4 * MIB),
  },
  {
    name: "a smaller disk",
    recipe: { ...V3, content: "some", snapshots: 1 },
    run: ({ disk }) => disk.resize(MIB / 2),
    expectDisk: expectSize(MIB / 2),
  },
  {
    // One refcount table of 64 entries, for 64 clusters each, counts 2 MiB, which are nearly full.
    name: "a larger refcount table",
    recipe: { ...V3, virtualSize: 5 * MIB, options: { refcount_bits: 64 }, prefill: 1900 * 1024 },
    run: ({ disk }) => {
      const buffer = NativeBuffer.allocate(MIB);
      buffer.bytes.fill(1);
      disk.write(3 * MIB, MIB, buffer, 0);
    },
    expectDisk: (found, before, label) => {
      const written = found.subarray(3 * MIB, 4 * MIB);
      expect(
        written.every((byte) => byte === 0 || byte === 1),
        label,
      ).toBe(true);
      written.fill(0);
      expectSame(found, before, label);
    },
  },
  {
    name: "all changes of bitmaps",
    recipe: { ...V3, clusterSize: 512, content: "some" },
    prepare: addBitmaps,
    run: ({ disk }) => {
      disk.editBitmaps([
        { action: "clear", name: "emptied" },
        { action: "remove", name: "gone" },
        { action: "disable", name: "off" },
        { action: "enable", name: "on" },
        { action: "merge", name: "changed", source: "emptied" },
        { action: "add", name: "new", granularity: 4096 },
      ]);
    },
    expectDisk: expectSame,
    expectMore: expectBitmaps,
  },
  {
    name: "streaming",
    recipe: { ...V3, clusterSize: 4096, backing: { format: "raw", size: MIB }, content: "some" },
    run: ({ disk, storage }) => {
      const job = new StreamJob(disk, disk.chain.images.length);
      while (!job.step());
      disk.dropBacking(() => setBackingFile("qcow2", storage, undefined));
    },
    expectDisk: expectSame,
  },
];

/** A session on the image as it is at first. @returns what went wrong with the operation */
function work(
  { directory, recipe, path, initial }: FailingWorld,
  { run }: Operation,
  log: RecordingLog,
  faultOf?: FaultHook,
): unknown {
  const file = initial.clone();
  const policy = { ...USUAL_POLICY, growable: true, copyOnRead: false };
  const { disk, closeFiles } = openRecorded(directory, recipe, policy, [file], log, faultOf);
  try {
    const storage = new RecordingStorage(path, file, log, 0, faultOf);
    const error = tolerate(() => run({ disk, storage }));
    // It goes on serving.
    const size = disk.currentSize();
    disk.read(0, size, NativeBuffer.allocate(size), 0);
    tolerate(() => disk.close());
    return error;
  } finally {
    closeFiles();
    file.save(path);
  }
}

async function expectSound(
  { directory }: FailingWorld,
  statuses: readonly number[],
  label: string,
): Promise<void> {
  const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
  expect(statuses, `${label}: ${check.stdout}${check.stderr}`.slice(0, 1000)).toContain(
    check.status,
  );
}

async function diskOf({ directory, recipe }: FailingWorld): Promise<Buffer> {
  const content = await contentOf(directory, recipe);
  return content.bytesAt(0, content.length);
}

describe("calls that fail leave nothing but leaks, and the disk as it was or as it is to be", () => {
  it.each(OPERATIONS)("$name", async (operation) => {
    await withMemoryScratch("failing-operations", async (root) => {
      const { name, prepare, expectDisk, expectMore } = operation;
      const directory = `${root}/work`;
      const recipe: ImageRecipe = { ...operation.recipe, name };
      mkdirSync(directory);
      await makeImage(directory, recipe, new Random(`image ${name}`));
      await prepare?.(directory);
      const [path = ""] = imageFiles(directory, recipe);
      const world: FailingWorld = { directory, recipe, path, initial: SparseFile.load(path) };
      const before = await diskOf(world);
      const log: RecordingLog = { operations: [] };
      expect(work(world, operation, log)).toBeUndefined();
      let error: unknown;
      await failEach(
        { calls: log.operations.length, cases: FAILING, random: new Random(`failing ${name}`) },
        (faultOf) => {
          error = work(world, operation, { operations: [] }, faultOf);
        },
        async (label) => {
          if (error !== undefined) expect(String(error), label).toContain(`${path}: `);
          await expectSound(world, CLEAN_OR_LEAKS, label);
          expectDisk(await diskOf(world), before, label);
          await expectMore?.(path, label);
          recoverInPlace(directory, recipe);
          await expectSound(world, CLEAN, `${label}, recovered`);
          expectDisk(await diskOf(world), before, `${label}, recovered`);
          await expectMore?.(path, `${label}, recovered`);
        },
      );
    });
  });
});
