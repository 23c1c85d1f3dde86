/**
 * Crashes of the host at any moment of streaming, up to the end, where the image lets go of its backing file:
 * its disk never changes, and nothing but leaks is left behind.
 */

import { mkdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { StreamJob } from "../../src/block/stream-job.ts";
import { setBackingFile } from "../../src/formats/formats.ts";
import { openRecorded, USUAL_POLICY } from "../support/crash-engine.ts";
import {
  contentOf,
  imageFiles,
  makeImage,
  qemuImg,
  sourceArguments,
} from "../support/crash-images.ts";
import { type ImageRecipe, RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(15, 400);

/** How an image lets go: while others might write to it, as in a mount; or closed, as the command does it. */
const ENDINGS = ["mounted", "closed"] as const;
type Ending = (typeof ENDINGS)[number];

/** Streams the image in a directory. Returns its files before, and what was done to them. */
function recordStreaming(
  directory: string,
  recipe: ImageRecipe,
  ending: Ending,
): { readonly initial: SparseFile[]; readonly log: RecordingLog } {
  const paths = imageFiles(directory, recipe);
  const files = paths.map((path) => SparseFile.load(path));
  const initial = files.map((file) => file.clone());
  const log: RecordingLog = { operations: [] };
  const [path] = paths;
  const [file] = files;
  if (path === undefined || file === undefined) throw new RangeError("no image");
  const letGo = (): void => {
    setBackingFile(recipe.format, new RecordingStorage(path, file, log, 0), undefined);
  };
  const { disk, closeFiles } = openRecorded(directory, recipe, USUAL_POLICY, files, log);
  try {
    const job = new StreamJob(disk, disk.chain.images.length);
    while (!job.step());
    if (ending === "mounted") disk.dropBacking(letGo);
    disk.close();
    if (ending === "closed") letGo();
  } finally {
    closeFiles();
  }
  return { initial, log };
}

describe("a crash at any moment of streaming leaves the disk as it is", () => {
  const recipes = RECIPES.filter(({ backing, snapshots }) => backing && !snapshots);
  const cases = recipes.flatMap((recipe) =>
    ENDINGS.map((ending) => [recipe.name, ending, recipe] as const),
  );

  it.each(cases)("%s, %s", async (name, ending, recipe) => {
    await withMemoryScratch("streaming", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory, recipe, new Random(`image ${name}`));
      const wanted = await contentOf(directory, recipe);
      const { initial, log } = recordStreaming(directory, recipe, ending);
      const states = new CrashStates(initial, log);
      const random = new Random(`streaming ${name} ${ending}`);
      const last = log.operations.length;
      for (let number = 0; number <= STATES; number++) {
        // What the end leaves is one of them, and a third are close to it.
        const first = number % 3 === 0 ? Math.max(0, last - 12) : 0;
        const position = number === STATES ? last : random.between(first, last);
        const strategy = random.pick(STRATEGIES);
        const files =
          number === STATES ? states.prefix(last) : states.random(position, strategy, random);
        imageFiles(directory, recipe).forEach((path, index) => {
          files[index]?.save(path);
        });
        const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
        const check = await qemuImg(directory, ["check", "-q", ...sourceArguments(recipe)]);
        expect([0, 3], `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
        expect((await contentOf(directory, recipe)).equals(wanted), label).toBe(true);
      }
      const info = await qemuImg(directory, ["info", ...sourceArguments(recipe)]);
      expect(info.stdout).not.toContain("backing file:");
    });
  });
});
