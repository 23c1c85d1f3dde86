/**
 * Crashes of the host at any moment of committing: the disk of the image never changes, whatever got to the base
 * and was taken out of the image, and nothing but leaks is left behind.
 */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { SharedFile } from "../../src/storage/local-file.ts";
import { commitImage } from "../support/command-jobs.ts";
import {
  BACKING_NAME,
  contentOf,
  IMAGE_NAME,
  makeImage,
  qemuImg,
} from "../support/crash-images.ts";
import { type ImageRecipe, RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import type { ImageFormat } from "../support/qemu.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(6, 400);

/** Commits an image. Returns its file and that of the base before, and what was done to them. */
function recordCommit(
  recipe: ImageRecipe,
  paths: readonly string[],
): { readonly initial: SparseFile[]; readonly log: RecordingLog } {
  const files = paths.map((path) => SparseFile.load(path));
  const initial = files.map((file) => file.clone());
  const log: RecordingLog = { operations: [] };
  const attachFile = ({ path }: SharedFile): RecordingStorage => {
    const index = paths.findIndex((known) => join(known) === join(path));
    const file = files[index];
    if (file === undefined) throw new RangeError(path);
    return new RecordingStorage(path, file, log, index);
  };
  const [path = ""] = paths;
  commitImage({ path, format: recipe.format }, attachFile);
  return { initial, log };
}

/** The files of a state get to their places; qemu-img check must find nothing but leaks in them. */
async function saveAndCheck(
  directory: string,
  paths: readonly string[],
  files: readonly SparseFile[],
  formats: readonly ImageFormat[],
  label: string,
): Promise<void> {
  for (const [index, path] of paths.entries()) {
    files[index]?.save(path);
    const format = formats[index];
    if (format === undefined || format === "raw") continue;
    const check = await qemuImg(directory, ["check", "-q", "-f", format, path]);
    expect([0, 3], `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
  }
}

describe("a crash at any moment of committing leaves the disk as it is", () => {
  const recipes = RECIPES.filter(
    ({ backing, snapshots, encryption }) => backing && !snapshots && !encryption,
  );

  it.each(recipes.map((recipe) => [recipe.name, recipe] as const))("%s", async (name, recipe) => {
    await withMemoryScratch("committing", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory, recipe, new Random(`image ${name}`));
      const wanted = await contentOf(directory, recipe);
      const paths = [join(directory, IMAGE_NAME), join(root, BACKING_NAME)];
      const formats: ImageFormat[] = [recipe.format, recipe.backing?.format ?? "raw"];
      const { initial, log } = recordCommit(recipe, paths);
      const states = new CrashStates(initial, log);
      const random = new Random(`committing ${name}`);
      const last = log.operations.length;
      const expectState = async (files: readonly SparseFile[], label: string): Promise<void> => {
        await saveAndCheck(directory, paths, files, formats, label);
        expect((await contentOf(directory, recipe)).equals(wanted), label).toBe(true);
      };
      for (let number = 0; number < STATES; number++) {
        // A third are close to the end.
        const first = number % 3 === 0 ? Math.max(0, last - 16) : 0;
        const position = random.between(first, last);
        const strategy = random.pick(STRATEGIES);
        const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
        await expectState(states.random(position, strategy, random), label);
      }
      await expectState(states.prefix(last), "the end");
      if ((recipe.backing?.size ?? 0) > recipe.virtualSize) return;
      const [top = "raw", below = "raw"] = formats;
      const compare = ["compare", "-f", top, "-F", below, IMAGE_NAME, `../${BACKING_NAME}`];
      const { status } = await qemuImg(directory, compare);
      expect(status, "the base has what the image has").toBe(0);
    });
  });
});
