/**
 * Crashes of the host, and calls that fail, while persistent bitmaps are kept up, stored, and changed: a bitmap that is not marked as in
 * use has all that was changed, and nothing but leaks is left behind.
 */

import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { Disk } from "../../src/block/disk.ts";
import { TsimgfsError } from "../../src/errors.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { type ReadBitmap, readBitmaps } from "../support/bitmap-reader.ts";
import { openRecorded, recoverInPlace, USUAL_POLICY } from "../support/crash-engine.ts";
import {
  contentOf,
  IMAGE_NAME,
  imageFiles,
  mustQemuImg,
  qemuImg,
} from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { type CallChoice, failEach } from "../support/failing-calls.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { FaultHook, RecordingLog } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(16, 600);
/** Calls of each session, and of its end, that fail in one way. */
const FAILING = byScale(2, 150);
const FAILING_AT_END = byScale(6, 100);
const KIB = 1024;

const RECIPE: ImageRecipe = {
  name: "4k with bitmaps",
  group: "plain",
  format: "qcow2",
  virtualSize: 2 * KIB * KIB,
  clusterSize: 512,
};

/** Makes a step of the work, which may fail where the storage does. */
type MakeStep = (step: () => void) => void;

type Work = (disk: Disk, random: Random, make: MakeStep) => void;

const MUST_WORK: MakeStep = (step) => step();

/** As a daemon, which goes on after a request that failed. */
const MAY_FAIL: MakeStep = (step) => {
  try {
    step();
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
  }
};

function writeHereAndThere(disk: Disk, random: Random, make: MakeStep): void {
  const buffer = NativeBuffer.allocate(64 * KIB);
  for (let step = 0; step < 12; step++) {
    const length = 512 * random.between(1, 100);
    const offset = 512 * random.below((disk.virtualSize - length) / 512);
    buffer.bytes.fill(step + 1);
    make(() => {
      if (step % 4 === 3) disk.writeZeroes(offset, length, { unmap: true });
      else disk.write(offset, length, buffer, 0);
    });
    if (step % 3 === 2) make(() => disk.flush());
  }
}

const WORKS: readonly (readonly [string, Work])[] = [
  ["writes", writeHereAndThere],
  [
    "writes and a larger disk",
    (disk, random, make) => {
      writeHereAndThere(disk, random, make);
      make(() => disk.resize(disk.virtualSize * 9));
    },
  ],
  [
    "writes and a smaller disk",
    (disk, random, make) => {
      make(() => disk.resize(disk.virtualSize / 4));
      writeHereAndThere(disk, random, make);
    },
  ],
];

/** Makes an image with data and bitmaps, some of which are marked. */
async function makeImage(directory: string): Promise<void> {
  const { virtualSize, clusterSize } = RECIPE;
  const options = ["-o", `cluster_size=${clusterSize}`];
  await mustQemuImg(directory, [
    ...["create", "-q", "-f", "qcow2", ...options, IMAGE_NAME, String(virtualSize)],
  ]);
  await mustQemuImg(directory, ["bitmap", "--add", "-g", "512", IMAGE_NAME, "fine"]);
  await mustQemuImg(directory, ["bitmap", "--add", "-g", "64k", IMAGE_NAME, "coarse"]);
  await mustQemuImg(directory, ["bitmap", "--add", "--disable", "-g", "512", IMAGE_NAME, "off"]);
}

interface Recorded {
  readonly initial: SparseFile[];
  readonly log: RecordingLog;
  /** Operations before the end of the session. */
  readonly worked: number;
}

/** A session that works on the image as it is in the directory. */
function record(directory: string, work: (disk: Disk) => void, faultOf?: FaultHook): Recorded {
  const paths = imageFiles(directory, RECIPE);
  const files = paths.map((path) => SparseFile.load(path));
  const initial = files.map((file) => file.clone());
  const log: RecordingLog = { operations: [] };
  const policy = { ...USUAL_POLICY, growable: true };
  const { disk, closeFiles } = openRecorded(directory, RECIPE, policy, files, log, faultOf);
  let worked = 0;
  try {
    work(disk);
    worked = log.operations.length;
    if (faultOf === undefined) disk.close();
    else MAY_FAIL(() => disk.close());
  } finally {
    closeFiles();
  }
  for (const [index, path] of paths.entries()) files[index]?.save(path);
  return { initial, log, worked };
}

/** Calls `expectState` for states of the image's file that a crash may leave, and for the last one. */
async function replay(
  directory: string,
  name: string,
  { initial, log }: Recorded,
  expectState: (label: string) => Promise<void>,
): Promise<void> {
  const [path = ""] = imageFiles(directory, RECIPE);
  const states = new CrashStates(initial, log);
  const random = new Random(`bitmaps ${name}`);
  const last = log.operations.length;
  for (let number = 0; number <= STATES; number++) {
    const first = number % 2 === 0 ? Math.max(0, last - 40) : 0;
    const position = number === STATES ? last : random.between(first, last);
    const strategy = random.pick(STRATEGIES);
    const files =
      number === STATES ? states.prefix(last) : states.random(position, strategy, random);
    files[0]?.save(path);
    const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
    const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
    expect([0, 3], `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
    await expectState(label);
  }
}

async function contentBytes(directory: string): Promise<Buffer> {
  await contentOf(directory, RECIPE);
  return readFileSync(join(directory, "disk"));
}

/** Enabled bitmaps that may be used have all that differs. */
async function expectNoneLacks(directory: string, before: Buffer, label: string): Promise<void> {
  const now = await contentBytes(directory);
  const bitmaps = (await readBitmaps(join(directory, IMAGE_NAME))) ?? [];
  expect(bitmaps, label).toHaveLength(3);
  for (const bitmap of bitmaps) {
    if (bitmap.auto && !bitmap.inUse) expectMarked(bitmap, before, now, label);
  }
}

function expectMarked(bitmap: ReadBitmap, before: Buffer, now: Buffer, label: string): void {
  const { granularity, set, name } = bitmap;
  const marked = new Set(set);
  const length = Math.min(before.length, now.length);
  for (let offset = 0; offset < length; offset += granularity) {
    const end = Math.min(offset + granularity, length);
    if (before.compare(now, offset, end, offset, end) === 0) continue;
    expect(marked.has(offset / granularity), `${label}: ${name} at ${offset}`).toBe(true);
  }
}

describe("a crash at any moment leaves no bitmap that lacks something", () => {
  it.each(WORKS)("%s", async (name, work) => {
    await withMemoryScratch("bitmaps", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory);
      const before = await contentBytes(directory);
      const random = new Random(`bitmaps work ${name}`);
      const recorded = record(directory, (disk) => work(disk, random, MUST_WORK));
      await replay(directory, name, recorded, (label) => expectNoneLacks(directory, before, label));
      const last = await readBitmaps(join(directory, IMAGE_NAME));
      expect(last?.map(({ inUse }) => inUse)).toEqual([false, false, false]);
    });
  });

  it("changes of bitmaps", async () => {
    await withMemoryScratch("bitmaps", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory);
      record(directory, (disk) => writeHereAndThere(disk, new Random("marks"), MUST_WORK));
      const path = join(directory, IMAGE_NAME);
      const before = (await readBitmaps(path)) ?? [];
      const recorded = record(directory, (disk) => {
        disk.editBitmaps([
          { action: "merge", name: "off", source: "fine" },
          { action: "clear", name: "coarse" },
          { action: "remove", name: "fine" },
          { action: "add", name: "new", granularity: 4096 },
        ]);
      });
      const known = new Set(before.map((bitmap) => JSON.stringify(bitmap)));
      const after: ReadBitmap[][] = [];
      await replay(directory, "edits", recorded, async () => {
        after.push([...((await readBitmaps(path)) ?? [])]);
      });
      const end = after.at(-1) ?? [];
      expect(end.map(({ name }) => name)).toEqual(["coarse", "off", "new"]);
      for (const bitmap of end) known.add(JSON.stringify(bitmap));
      for (const bitmaps of after) {
        expect([3], "all of them, before or after").toContain(bitmaps.length);
        for (const bitmap of bitmaps) {
          if (!bitmap.inUse) expect(known).toContain(JSON.stringify(bitmap));
        }
      }
    });
  });
});

/** What is left when calls fail, and what the next writer makes of it. */
async function failCalls(
  name: string,
  work: Work,
  choose: (recorded: Recorded) => Pick<CallChoice, "start" | "cases">,
): Promise<void> {
  await withMemoryScratch("bitmaps", async (root) => {
    const directory = `${root}/work`;
    mkdirSync(directory);
    await makeImage(directory);
    const before = await contentBytes(directory);
    const [path = ""] = imageFiles(directory, RECIPE);
    const initial = SparseFile.load(path);
    const worked = (make: MakeStep) => (disk: Disk) =>
      work(disk, new Random(`failing bitmaps ${name}`), make);
    const recorded = record(directory, worked(MUST_WORK));
    const calls = recorded.log.operations.length;
    const random = new Random(`failing calls ${name}`);
    await failEach(
      { calls, random, ...choose(recorded) },
      (faultOf) => {
        initial.save(path);
        record(directory, worked(MAY_FAIL), faultOf);
      },
      async (label) => {
        const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
        expect([0, 3], `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
        await expectNoneLacks(directory, before, label);
        recoverInPlace(directory, RECIPE);
        const again = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
        expect(again.status, `${label}, recovered: ${again.stderr.slice(0, 500)}`).toBe(0);
        await expectNoneLacks(directory, before, `${label}, recovered`);
      },
    );
  });
}

describe("calls that fail leave no bitmap that lacks something, and nothing but leaks", () => {
  it.each(WORKS)("%s", async (name, work) => {
    await failCalls(name, work, () => ({ cases: FAILING }));
  });

  it("at the end of a session, when all is stored and given back", async () => {
    await failCalls("the end", writeHereAndThere, ({ worked }) => ({
      start: worked,
      cases: FAILING_AT_END,
    }));
  });
});
