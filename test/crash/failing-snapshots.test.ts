/**
 * Calls of the host that fail, each in turn, while a snapshot is made, applied or deleted: the image is what it was or
 * what it is to be, with all its snapshots, the error names the file, and whoever goes on with it reads and writes it.
 */

import { mkdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Disk } from "../../src/block/disk.ts";
import type { SnapshotAction } from "../../src/block/snapshots.ts";
import { TsimgfsError } from "../../src/errors.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { openRecorded, recoverInPlace, USUAL_POLICY } from "../support/crash-engine.ts";
import {
  contentOf,
  contentOfSnapshot,
  IMAGE_NAME,
  imageFiles,
  makeImage,
  qemuImg,
} from "../support/crash-images.ts";
import { RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { type FailingWorld, failEach, tolerate } from "../support/failing-calls.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { FaultHook, RecordingLog } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

/** Calls of each change that fail in one way. */
const FAILING = byScale(2, 100);

/** Small clusters, so that blocks and tables move; with backing files, sub-clusters, and without a dirty bit. */
const NAMES = [
  "4k with snapshots",
  "v2 4k over qcow2 with a snapshot",
  ...byScale([], ["extended L2 16k over qcow2 with a snapshot"]),
];
const IMAGES = RECIPES.filter(({ name }) => NAMES.includes(name));

const ACTIONS: readonly (readonly [SnapshotAction, string])[] = [
  ["create", "new"],
  ["apply", "start-0"],
  ["delete", "start-0"],
];

/** Whether there is anything else in the session: a command has nothing, a mount has written and goes on. */
const MANNERS = ["a command", "a mount"] as const;
type Manner = (typeof MANNERS)[number];

/** What an image is, by QEMU. */
interface Contents {
  readonly disk: SparseFile;
  readonly snapshots: ReadonlyMap<string, SparseFile>;
}

interface Session {
  /** What the disk was after the change, by the engine. */
  readonly shown: SparseFile;
  /** Calls before the change of snapshots. */
  readonly start: number;
  readonly error: unknown;
}

function bufferOf(bytes: Uint8Array): NativeBuffer {
  const buffer = NativeBuffer.allocate(bytes.length);
  buffer.bytes.set(bytes);
  return buffer;
}

function write(disk: Disk, offset: number, random: Random): void {
  const length = 3 * 4096;
  disk.write(offset, length, bufferOf(random.bytes(length)), 0);
}

function readAll(disk: Disk): SparseFile {
  const length = disk.currentSize();
  const buffer = NativeBuffer.allocate(length);
  disk.read(0, length, buffer, 0);
  const content = SparseFile.empty(length);
  content.write(0, buffer.bytes);
  return content;
}

/** A session on the image as it is at first. Calls fail from the change of snapshots on. */
function work(
  { directory, recipe, path, initial }: FailingWorld,
  [action, name]: (typeof ACTIONS)[number],
  manner: Manner,
  log: RecordingLog,
  faultOf: FaultHook = () => undefined,
): Session {
  const file = initial.clone();
  let isFailing = false;
  const hook: FaultHook = (operation) => (isFailing ? faultOf(operation) : undefined);
  const policy = { ...USUAL_POLICY, copyOnRead: false };
  const { disk, closeFiles } = openRecorded(directory, recipe, policy, [file], log, hook);
  const random = new Random("writes around snapshots");
  try {
    if (manner === "a mount") {
      write(disk, 5 * 4096 + 512, random);
      write(disk, recipe.virtualSize - 9 * 4096, random);
    }
    const start = log.operations.length;
    isFailing = true;
    const error = tolerate(() => disk.changeSnapshots(action, name));
    const shown = readAll(disk);
    if (manner === "a mount") {
      // It goes on. What is there is written once more: whatever becomes of that, the disk is the same.
      tolerate(() =>
        disk.write(5 * 4096, 2 * 4096, bufferOf(shown.bytesAt(5 * 4096, 2 * 4096)), 0),
      );
      tolerate(() => disk.flush());
      expect(readAll(disk).equals(shown)).toBe(true);
    }
    tolerate(() => disk.close());
    return { shown, start, error };
  } finally {
    closeFiles();
    file.save(path);
  }
}

async function contentsOf({ directory, recipe }: FailingWorld): Promise<Contents> {
  const disk = await contentOf(directory, recipe);
  const { stdout } = await qemuImg(directory, ["snapshot", "-l", IMAGE_NAME]);
  const snapshots = new Map<string, SparseFile>();
  for (const line of stdout.split("\n").slice(2, -1)) {
    const name = line.split(/\s+/)[1] ?? "";
    snapshots.set(name, await contentOfSnapshot(directory, recipe, name));
  }
  return { disk, snapshots };
}

function areEqual(one: Contents, other: Contents): boolean {
  if (!one.disk.equals(other.disk) || one.snapshots.size !== other.snapshots.size) return false;
  return [...one.snapshots].every(([name, content]) => {
    return other.snapshots.get(name)?.equals(content) === true;
  });
}

/** Exit codes of qemu-img check: sound, or leaked clusters. */
const CLEAN = [0];
const CLEAN_OR_LEAKS = [0, 3];

async function expectSound(
  { directory }: FailingWorld,
  statuses: readonly number[],
  label: string,
): Promise<void> {
  const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
  expect(statuses, `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
}

/** What the image is without a change of snapshots, and with it. */
async function outcomesOf(
  world: FailingWorld,
  change: (typeof ACTIONS)[number],
  manner: Manner,
): Promise<{ before: Contents; after: Contents }> {
  const all: FaultHook = () => ({ code: "EIO", written: 0 });
  expect(work(world, change, manner, { operations: [] }, all).error).toBeInstanceOf(TsimgfsError);
  const before = await contentsOf(world);
  expect(work(world, change, manner, { operations: [] }).error).toBeUndefined();
  const after = await contentsOf(world);
  expect(areEqual(before, after)).toBe(false);
  return { before, after };
}

const CASES = IMAGES.flatMap((recipe) =>
  ACTIONS.flatMap((change) =>
    MANNERS.map((manner) => [change[0], manner, recipe.name, change, recipe] as const),
  ),
);

/** In the quick form, one image in a mount, and applying in another one by a command. */
const CHOSEN = CASES.filter(([action, manner, name]) => {
  const inMount = manner === "a mount" && action !== "apply" && name === NAMES[0];
  const byCommand = manner === "a command" && action === "apply" && name === NAMES[1];
  return byScale(inMount || byCommand, true);
});

describe("a call that fails while a snapshot changes", () => {
  it.each(CHOSEN)("%s by %s: %s", async (action, manner, name, change, recipe) => {
    await withMemoryScratch("failing-snapshots", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory, recipe, new Random(`image ${name}`));
      const [path = ""] = imageFiles(directory, recipe);
      const world: FailingWorld = { directory, recipe, path, initial: SparseFile.load(path) };
      const { before, after } = await outcomesOf(world, change, manner);
      const log: RecordingLog = { operations: [] };
      const { start } = work(world, change, manner, log);
      let session: Session | undefined;
      await failEach(
        {
          calls: log.operations.length - start,
          cases: FAILING,
          random: new Random(`failing ${action} ${manner} ${name}`),
        },
        (faultOf) => {
          session = work(world, change, manner, { operations: [] }, faultOf);
        },
        async (label) => {
          const { shown, error } = session ?? {};
          if (error !== undefined) expect(String(error), label).toContain(`${path}: `);
          await expectSound(world, CLEAN_OR_LEAKS, label);
          const found = await contentsOf(world);
          const isBefore = areEqual(found, before);
          expect(isBefore || areEqual(found, after), label).toBe(true);
          if (error === undefined) expect(areEqual(found, after), `${label}, done`).toBe(true);
          // What it went on to show is what is there.
          expect(shown?.equals(found.disk), `${label}, shown`).toBe(true);
          recoverInPlace(directory, recipe);
          await expectSound(world, CLEAN, `${label}, recovered`);
          expect(areEqual(await contentsOf(world), found), `${label}, recovered`).toBe(true);
        },
      );
    });
  });
});
