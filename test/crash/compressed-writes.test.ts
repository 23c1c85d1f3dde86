/**
 * Crashes while clusters are written compressed: a stream that the tables refer to can be read, whatever
 * the disk kept of the rest, and without the wait for the disk a state is found where it cannot.
 */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { openRecorded, recoverInPlace } from "../support/crash-engine.ts";
import { contentOf, imageFiles, makeImage } from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { CrashVerifier } from "../support/crash-verifier.ts";
import { DiskModel } from "../support/disk-model.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { LoggedOperation, RecordingLog } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const KIB = 1024;
const CLUSTERS = 96;
const STEPS = 40;
const STATES = byScale(64, 2000);
/** States that are tried until a missing barrier shows. */
const STATES_MAX = 1000;

const image = { group: "special", format: "qcow2", content: "none" } as const;

const RECIPES: readonly ImageRecipe[] = [
  { ...image, name: "4k", virtualSize: CLUSTERS * 4 * KIB, clusterSize: 4 * KIB },
  {
    ...image,
    name: "16k sub-clusters over a shorter raw",
    virtualSize: CLUSTERS * 16 * KIB,
    clusterSize: 16 * KIB,
    options: { extended_l2: "on" },
    backing: { format: "raw", size: 50 * 16 * KIB },
  },
  {
    ...image,
    name: "8k with refcounts of 2 bits",
    virtualSize: CLUSTERS * 8 * KIB,
    clusterSize: 8 * KIB,
    options: { refcount_bits: 2 },
  },
  {
    ...image,
    name: "v2 512",
    virtualSize: CLUSTERS * 512,
    clusterSize: 512,
    options: { compat: "0.10" },
  },
];

interface Session {
  readonly initial: readonly SparseFile[];
  readonly log: RecordingLog;
  readonly model: DiskModel;
  /** Operations from the start of each flush of the disk's user to its end. */
  readonly flushes: readonly { readonly start: number; readonly end: number }[];
}

/** Writes clusters compressed and plain, and flushes, on recorded files. */
async function recordSession(directory: string, recipe: ImageRecipe): Promise<Session> {
  const random = new Random(`compressed crash ${recipe.name}`);
  mkdirSync(directory);
  await makeImage(directory, recipe, random);
  const files = imageFiles(directory, recipe).map((path) => SparseFile.load(path));
  const initial = files.map((file) => file.clone());
  const model = new DiskModel(await contentOf(directory, recipe));
  const log: RecordingLog = { operations: [] };
  const policy = {
    detectZeroes: "on",
    discard: "unmap",
    growable: false,
    copyOnRead: false,
  } as const;
  const { disk, closeFiles } = openRecorded(directory, recipe, policy, files, log);
  const { clusterSize } = recipe;
  const allocated = new Set<number>();
  const flushes: { start: number; end: number }[] = [];
  try {
    for (let step = 0; step < STEPS; step++) {
      const start = log.operations.length;
      const first = random.below(CLUSTERS);
      let count = 1;
      while (first + count < CLUSTERS && !allocated.has(first + count) && random.below(6) > 0)
        count++;
      const data = random.text(count * clusterSize);
      const source = NativeBuffer.allocate(data.length);
      source.bytes.set(data);
      const offset = first * clusterSize;
      if (random.below(8) === 0) {
        disk.flush();
        model.flushed(log.operations.length);
        flushes.push({ start, end: log.operations.length });
        continue;
      }
      if (allocated.has(first)) disk.write(offset, data.length, source, 0);
      else disk.writeCompressed(offset, data.length, source, 0);
      for (let cluster = first; cluster < first + count; cluster++) allocated.add(cluster);
      const { length } = data;
      model.done({ kind: "write", offset, length, data }, { start, end: log.operations.length });
    }
    const start = log.operations.length;
    disk.close();
    model.flushed(log.operations.length);
    flushes.push({ start, end: log.operations.length });
  } finally {
    closeFiles();
  }
  return { initial, log, model, flushes };
}

/** The log as if only the disk's user had waited for the disk. */
function withoutBarriers({ log, flushes }: Session): RecordingLog {
  const operations = log.operations.map((operation, position): LoggedOperation => {
    const isWanted = flushes.some(({ start, end }) => start <= position && position < end);
    if (operation.kind !== "sync" || isWanted) return operation;
    return { kind: "zero", file: operation.file, offset: 0, length: 0 };
  });
  return { operations };
}

/** Verifies so many states that a crash can leave, of a log. */
async function verifyStates(
  root: string,
  recipe: ImageRecipe,
  { initial, model }: Session,
  log: RecordingLog,
  count: number,
): Promise<void> {
  const recover = (directory: string): void => recoverInPlace(directory, recipe);
  const verifier = new CrashVerifier({ root, recipe, recover, snapshots: new Map() });
  const states = new CrashStates(initial, log);
  const random = new Random(`compressed states ${recipe.name}`);
  for (let number = 0; number < count; number++) {
    const position = random.between(0, log.operations.length);
    const strategy = random.pick(STRATEGIES);
    const isKill = number % 4 === 0;
    await verifier.add({
      files: isKill ? states.prefix(position) : states.random(position, strategy, random),
      allowed: isKill
        ? model.allowedAfterKill(position)
        : model.allowedAfterPowerCut(position, { mixed: strategy === "any-order" }),
      describe: () =>
        `position ${position}, ${isKill ? "killed" : strategy}, TSIMGFS_TEST_SEED=${SEED} repeats it`,
    });
  }
  await verifier.finish();
}

describe.each(RECIPES)("crashes while clusters are compressed: $name", (recipe) => {
  it("lose nothing that was promised", async () => {
    await withMemoryScratch("compressed", async (root) => {
      const session = await recordSession(join(root, "work"), recipe);
      await verifyStates(root, recipe, session, session.log, STATES);
    });
  });

  it("would lose what was not waited for", async () => {
    await withMemoryScratch("compressed", async (root) => {
      const session = await recordSession(join(root, "work"), recipe);
      const log = withoutBarriers(session);
      await expect(verifyStates(root, recipe, session, log, STATES_MAX)).rejects.toThrow();
    });
  });
});
