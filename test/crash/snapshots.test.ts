/**
 * Crashes of the host at any moment at which snapshots are made, applied and deleted: the image is what it
 * was before or what it is afterwards, with all its snapshots, and nothing is even leaked.
 */

import { mkdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Disk } from "../../src/block/disk.ts";
import type { SnapshotAction } from "../../src/block/snapshots.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";
import { openRecorded, USUAL_POLICY } from "../support/crash-engine.ts";
import {
  contentOf,
  contentOfSnapshot,
  IMAGE_NAME,
  imageFiles,
  makeImage,
  qemuImg,
} from "../support/crash-images.ts";
import { hasDataFile, type ImageRecipe, RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { RecordingLog } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

/** States of each step. */
const STATES = byScale(5, 150);

/** In the quick form: with backing files, sub-clusters, and without a dirty bit. */
const QUICK = [
  "4k with snapshots",
  "extended L2 16k over qcow2 with a snapshot",
  "v2 4k over qcow2 with a snapshot",
];

/** "write": some clusters are written and flushed. */
type Step = readonly ["write"] | readonly [SnapshotAction, string];

const STEPS: readonly Step[] = [
  ["create", "one"],
  ["write"],
  ["create", "two"],
  ["write"],
  ["apply", "one"],
  ["write"],
  ["delete", "two"],
  ["create", "three"],
  ["apply", "three"],
  ["delete", "one"],
  ["delete", "three"],
];

/** What an image is, by QEMU: its disk, and its snapshots. */
interface Contents {
  readonly disk: SparseFile;
  readonly snapshots: ReadonlyMap<string, SparseFile>;
}

/** A change of snapshots, as it was recorded. */
interface RecordedStep {
  readonly label: string;
  readonly start: number;
  readonly end: number;
  readonly before: SparseFile;
  readonly after: SparseFile;
}

function writeSome(disk: Disk, { clusterSize, virtualSize }: ImageRecipe, random: Random): void {
  for (let count = 0; count < 6; count++) {
    const length = random.between(1, 3 * clusterSize);
    const offset = random.below(virtualSize - length);
    const buffer = NativeBuffer.allocate(length);
    buffer.bytes.set(random.bytes(length));
    disk.write(offset, length, buffer, 0);
  }
  disk.flush();
}

function record(
  directory: string,
  recipe: ImageRecipe,
): { readonly initial: SparseFile; readonly log: RecordingLog; readonly steps: RecordedStep[] } {
  const [path] = imageFiles(directory, recipe);
  if (path === undefined) throw new RangeError("no image");
  const file = SparseFile.load(path);
  const initial = file.clone();
  const log: RecordingLog = { operations: [] };
  const random = new Random(`writes to ${recipe.name}`);
  const { disk, closeFiles } = openRecorded(directory, recipe, USUAL_POLICY, [file], log);
  const steps: RecordedStep[] = [];
  try {
    for (const [number, step] of STEPS.entries()) {
      const start = log.operations.length;
      const before = file.clone();
      const [what, name] = step;
      if (what === "write") writeSome(disk, recipe, random);
      else {
        disk.changeSnapshots(what, name);
        const label = `step ${number}, ${what} ${name}`;
        steps.push({ label, start, end: log.operations.length, before, after: file.clone() });
      }
    }
    disk.close();
  } finally {
    closeFiles();
  }
  return { initial, log, steps };
}

async function contentsOf(
  directory: string,
  recipe: ImageRecipe,
  file: SparseFile,
): Promise<Contents> {
  file.save(`${directory}/${IMAGE_NAME}`);
  const disk = await contentOf(directory, recipe);
  const snapshots = new Map<string, SparseFile>();
  for (const name of await namesOf(directory)) {
    snapshots.set(name, await contentOfSnapshot(directory, recipe, name));
  }
  return { disk, snapshots };
}

async function namesOf(directory: string): Promise<string[]> {
  const { stdout } = await qemuImg(directory, ["snapshot", "-l", IMAGE_NAME]);
  return stdout
    .split("\n")
    .slice(2, -1)
    .map((line) => line.split(/\s+/)[1] ?? "");
}

function areEqual(one: Contents, other: Contents): boolean {
  if (!one.disk.equals(other.disk) || one.snapshots.size !== other.snapshots.size) return false;
  return [...one.snapshots].every(([name, content]) => {
    return other.snapshots.get(name)?.equals(content) === true;
  });
}

/** Holds states that a step may leave against what was before and after it. */
async function verifyStep(
  directory: string,
  recipe: ImageRecipe,
  states: CrashStates,
  { label, start, end, before, after }: RecordedStep,
): Promise<void> {
  const allowed = [
    await contentsOf(directory, recipe, before),
    await contentsOf(directory, recipe, after),
  ];
  const random = new Random(`${recipe.name} ${label}`);
  for (let number = 0; number < STATES; number++) {
    // A third are close to the header's change.
    const first = number % 3 === 0 ? Math.max(start, end - 8) : start;
    const position = random.between(first, end);
    const strategy = random.pick(STRATEGIES);
    const [file] = states.random(position, strategy, random);
    if (file === undefined) throw new RangeError("no image");
    const where = `${label}: ${strategy} at ${position - start} of ${end - start}, seed ${SEED}`;
    const found = await contentsOf(directory, recipe, file);
    const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
    expect([0, 3], `${where}: ${check.stdout}${check.stderr}`).toContain(check.status);
    const isAllowed = allowed.some((contents) => areEqual(contents, found));
    expect(isAllowed, `${where}: ${[...found.snapshots.keys()].join(", ")}`).toBe(true);
  }
}

describe("a crash while snapshots change leaves the image as it was, or as it is then", () => {
  const recipes = RECIPES.filter(
    (recipe) =>
      recipe.format === "qcow2" &&
      recipe.growth === undefined &&
      recipe.prefill === undefined &&
      recipe.options?.["refcount_bits"] !== 1 &&
      !hasDataFile(recipe) &&
      byScale(QUICK.includes(recipe.name), true),
  );

  it.each(recipes.map((recipe) => [recipe.name, recipe] as const))("%s", async (name, recipe) => {
    await withMemoryScratch("snapshots", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory, recipe, new Random(`image ${name}`));
      const { initial, log, steps } = record(directory, recipe);
      const states = new CrashStates([initial], log);
      for (const step of steps) await verifyStep(directory, recipe, states, step);
      const [end] = states.prefix(log.operations.length);
      if (end === undefined) throw new RangeError("no image");
      await contentsOf(directory, recipe, end);
      const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
      expect(check.status, check.stdout + check.stderr).toBe(0);
    });
  });
});
