/**
 * Crashes of the host at any moment of rebasing onto another backing file: the disk never changes, whichever of the
 * two the header names, and nothing but leaks is left behind.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { rebaseDisk } from "../support/command-jobs.ts";
import { openRecorded, USUAL_POLICY } from "../support/crash-engine.ts";
import {
  BACKING_NAME,
  contentOf,
  IMAGE_NAME,
  imageFiles,
  makeImage,
  mustQemuImg,
  qemuImg,
} from "../support/crash-images.ts";
import { type ImageRecipe, RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(6, 400);
const NEW_NAME = "new-backing.raw";

/** Makes a raw file with most of what the old backing file has, and some that differs. */
async function makeNewBacking(root: string, recipe: ImageRecipe, random: Random): Promise<void> {
  const path = join(root, NEW_NAME);
  const format = recipe.backing?.format ?? "raw";
  await mustQemuImg(root, ["convert", "-f", format, "-O", "raw", BACKING_NAME, path]);
  const file = SparseFile.load(path);
  const bytes = random.bytes(20_000);
  writeFileSync(path, bytes, { flag: "r+" });
  expect(file.length).toBeGreaterThan(bytes.length);
}

/** Rebases the image in a directory. Returns its file before, and what was done to it. */
function recordRebase(
  directory: string,
  recipe: ImageRecipe,
): { readonly initial: SparseFile[]; readonly log: RecordingLog } {
  const [path = ""] = imageFiles(directory, recipe);
  const file = SparseFile.load(path);
  const initial = [file.clone()];
  const log: RecordingLog = { operations: [] };
  const { disk, closeFiles } = openRecorded(directory, recipe, USUAL_POLICY, [file], log);
  try {
    const newPath = join(directory, "..", NEW_NAME);
    const backing = { path: newPath, format: "raw", name: `../${NEW_NAME}` } as const;
    rebaseDisk(disk, { path, format: recipe.format, backing }, () => {
      return new RecordingStorage(path, file, log, 0);
    });
  } finally {
    closeFiles();
  }
  return { initial, log };
}

describe("a crash at any moment of rebasing leaves the disk as it is", () => {
  const recipes = RECIPES.filter(
    ({ backing, snapshots, encryption }) => backing && !snapshots && !encryption,
  );

  it.each(recipes.map((recipe) => [recipe.name, recipe] as const))("%s", async (name, recipe) => {
    await withMemoryScratch("rebasing", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      const random = new Random(`rebasing ${name}`);
      await makeImage(directory, recipe, random);
      await makeNewBacking(root, recipe, random);
      const wanted = await contentOf(directory, recipe);
      const { initial, log } = recordRebase(directory, recipe);
      const states = new CrashStates(initial, log);
      const last = log.operations.length;
      const expectState = async (files: readonly SparseFile[], label: string): Promise<void> => {
        files[0]?.save(join(directory, IMAGE_NAME));
        const check = await qemuImg(directory, ["check", "-q", "-f", recipe.format, IMAGE_NAME]);
        expect([0, 3], `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
        expect((await contentOf(directory, recipe)).equals(wanted), label).toBe(true);
      };
      for (let number = 0; number < STATES; number++) {
        // A third are close to the end.
        const first = number % 3 === 0 ? Math.max(0, last - 12) : 0;
        const position = random.between(first, last);
        const strategy = random.pick(STRATEGIES);
        const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
        await expectState(states.random(position, strategy, random), label);
      }
      await expectState(states.prefix(last), "the end");
      const info = await qemuImg(directory, ["info", "-f", recipe.format, IMAGE_NAME]);
      expect(info.stdout).toContain(`backing file: ../${NEW_NAME}`);
    });
  });
});
