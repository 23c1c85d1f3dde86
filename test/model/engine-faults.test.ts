/** Work while the host fails: its disk is full, or it cannot write. Nothing acknowledged is lost. */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { StorageError, TsimgfsError } from "../../src/errors.ts";
import { openRecorded, recoverInPlace } from "../support/crash-engine.ts";
import {
  contentOf,
  imageFiles,
  makeImage,
  qemuImg,
  sourceArguments,
} from "../support/crash-images.ts";
import { type ImageRecipe, RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import {
  applyStep,
  changeOf,
  type DiskStep,
  describeStep,
  StepDrawer,
  StepRunner,
} from "../support/crash-workload.ts";
import { findForbidden } from "../support/disk-model.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { Fault, LoggedOperation } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";
import { randomPolicy } from "./random-work.ts";

/** A size that half changed would be another matter. */
const UNSIZED = RECIPES.filter(({ growth }) => growth === undefined);
const ROUNDS = byScale(3, 20);
const STEPS = byScale(60, 200);
const BLOCK_SIZE = 512;

/** What the host cannot do now and then: store more, write at all, or say that what it has is durable. */
const KINDS = ["full", "broken", "not in sync"] as const;
type Kind = (typeof KINDS)[number];

/** Troubles that come and go: in a bad time, one call in a few fails. */
class Troubles {
  /** How many calls have failed. */
  count = 0;
  isBad = false;
  readonly kind: Kind;
  readonly #random: Random;

  constructor(kind: Kind, random: Random) {
    this.kind = kind;
    this.#random = random;
  }

  faultOf(operation: LoggedOperation): Fault | undefined {
    if (!this.isBad || !this.#concerns(operation) || this.#random.below(4) > 0) return undefined;
    this.count++;
    const written = operation.kind === "write" ? this.#writtenPart(operation) : 0;
    return { code: this.kind === "full" ? "ENOSPC" : "EIO", written };
  }

  #concerns({ kind }: LoggedOperation): boolean {
    switch (this.kind) {
      case "full":
        // Holes need no space, be they made or appended.
        return kind === "write";
      case "broken":
        return kind !== "sync";
      case "not in sync":
        return kind === "sync";
    }
  }

  /** Files are written in blocks: a part of a write ends between two of them. */
  #writtenPart({ offset, data }: { offset: number; data: Uint8Array }): number {
    const end = offset + this.#random.below(data.length);
    return Math.max(0, end - (end % BLOCK_SIZE) - offset);
  }
}

/** Takes over what a failed step left: each byte is as before, or as it was to become. */
function adopt(step: DiskStep, runner: StepRunner, content: SparseFile): void {
  const change = changeOf(step, content);
  if (change === undefined) return;
  const { offset, bytes } = change;
  const wanted = typeof bytes === "number" ? Buffer.alloc(bytes) : bytes;
  const before = content.bytesAt(offset, wanted.length);
  const now = runner.read(offset, wanted.length);
  const wrong = now.findIndex((byte, at) => byte !== before[at] && byte !== wanted[at]);
  expect(wrong, `after ${describeStep(step)} failed, the byte at 0x${offset.toString(16)} +`).toBe(
    -1,
  );
  content.write(offset, now);
}

/** Whether an error is the host's, or of what follows from it. */
function isExpected(error: unknown, { kind, count }: Troubles, countBefore: number): boolean {
  if (error instanceof StorageError && count > countBefore) return true;
  // Once it is unknown what is durable, nothing can be made so any more.
  return kind === "not in sync" && count > 0 && error instanceof TsimgfsError;
}

/** Carries a step out; what the host's failure left of it is taken over. */
function tryStep(
  step: DiskStep,
  runner: StepRunner,
  content: SparseFile,
  troubles: Troubles,
): void {
  const { count } = troubles;
  try {
    runner.run(step, content);
  } catch (error) {
    if (!isExpected(error, troubles, count)) {
      throw new Error(`${describeStep(step)}: ${String(error)}`, { cause: error });
    }
    adopt(step, runner, content);
    return;
  }
  applyStep(step, content);
}

/** One session in which the host fails now and then. Returns how often it did. */
function workInTrouble(
  { directory, recipe, files, content }: TroubledWork,
  random: Random,
  kind: Kind,
): number {
  const troubles = new Troubles(kind, random);
  const policy = randomPolicy(random, recipe);
  const log = { operations: [] };
  const { disk, closeFiles } = openRecorded(directory, recipe, policy, files, log, (operation) =>
    troubles.faultOf(operation),
  );
  try {
    const drawer = new StepDrawer(random, recipe);
    const runner = new StepRunner(disk);
    for (let number = 0; number < STEPS; number++) {
      if (random.below(8) === 0) troubles.isBad = !troubles.isBad;
      tryStep(drawer.draw(), runner, content, troubles);
    }
    troubles.isBad = false;
    try {
      disk.close();
    } catch (error) {
      if (!isExpected(error, troubles, troubles.count)) throw error;
    }
  } finally {
    closeFiles();
  }
  return troubles.count;
}

interface TroubledWork {
  readonly directory: string;
  readonly recipe: ImageRecipe;
  readonly files: readonly SparseFile[];
  /** What the disk contains; changed as the disk is. */
  readonly content: SparseFile;
}

/** Exit codes of qemu-img check: sound, or leaked clusters. */
const CLEAN = [0];
const CLEAN_OR_LEAKS = [0, 3];

async function expectSound(
  { directory, recipe, content }: TroubledWork,
  statuses: readonly number[],
): Promise<void> {
  if (recipe.format !== "raw") {
    const args = ["check", "-q", ...sourceArguments(recipe)];
    const { status, stdout, stderr } = await qemuImg(directory, args);
    expect(statuses, `qemu-img check: ${stdout}${stderr}`).toContain(status);
  }
  const allowed = { base: content, sizes: [content.length], versions: new Map(), mixed: false };
  expect(findForbidden(await contentOf(directory, recipe), allowed)).toBeUndefined();
}

describe.each(KINDS)("while the host's disk is now and then %s", (kind) => {
  /** Over all images: a few calls may fail for one of them by chance. */
  let failuresOfKind = 0;

  it.each(UNSIZED.map((recipe) => [recipe.name, recipe] as const))(
    "loses nothing that was acknowledged, and goes on: %s",
    async (name, recipe) => {
      await withMemoryScratch("faults", async (root) => {
        const directory = join(root, "work");
        mkdirSync(directory);
        await makeImage(directory, recipe, new Random(`image ${name}`));
        let failures = 0;
        for (let round = 0; round < ROUNDS; round++) {
          const random = new Random(`${kind} ${round} ${name}`);
          const paths = imageFiles(directory, recipe);
          const files = paths.map((path) => SparseFile.load(path));
          const content = await contentOf(directory, recipe);
          const work = { directory, recipe, files, content };
          failures += workInTrouble(work, random, kind);
          paths.forEach((path, index) => {
            files[index]?.save(path);
          });
          await expectSound(work, CLEAN_OR_LEAKS);
          recoverInPlace(directory, recipe);
          // Leaked clusters of QED before others in use stay.
          await expectSound(work, recipe.format === "qed" ? CLEAN_OR_LEAKS : CLEAN);
        }
        failuresOfKind += failures;
      });
    },
  );

  it("is known to have happened", () => {
    expect(failuresOfKind).toBeGreaterThan(UNSIZED.length);
  });
});
