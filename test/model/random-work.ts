/** Random steps on a disk, and the same on a plain file. */

import type { WritePolicy } from "../../src/block/write-policy.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import {
  applyStep,
  describeStep,
  type StepDrawer,
  StepRunner,
  type WritableDisk,
} from "../support/crash-workload.ts";
import type { Random } from "../support/random.ts";
import type { SparseFile } from "../support/recording-sparse-file.ts";

/**
 * Carries out steps.
 *
 * @param content what the disk contains; changed as the disk is
 * @throws {Error} a step fails, or reads something else than `content` has
 */
export function workOnDisk(
  disk: WritableDisk,
  drawer: StepDrawer,
  steps: number,
  content: SparseFile,
): void {
  const runner = new StepRunner(disk);
  for (let number = 0; number < steps; number++) {
    const step = drawer.draw();
    try {
      runner.run(step, content);
    } catch (error) {
      throw new Error(`step ${number}, ${describeStep(step)}: ${String(error)}`, { cause: error });
    }
    applyStep(step, content);
  }
}

export function randomPolicy(random: Random, recipe: ImageRecipe): WritePolicy {
  return {
    detectZeroes: random.pick(["on", "unmap", "off"]),
    discard: random.pick(["unmap", "unmap", "ignore"]),
    growable: recipe.growth !== undefined,
    copyOnRead: random.pick([true, true, false]),
  };
}
