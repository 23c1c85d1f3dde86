/** Long random work on one disk against a plain file, over the format matrix, without a mount. */

import { describe, expect, it } from "vitest";
import { openLocal } from "../support/crash-engine.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { StepDrawer } from "../support/crash-workload.ts";
import { byScale } from "../support/scale.ts";
import { MODEL_RECIPES } from "./model-recipes.ts";
import { ModelRun } from "./model-session.ts";
import { randomPolicy, workOnDisk } from "./random-work.ts";

const SESSIONS = byScale(3, 8);
/** The image is opened this many times in a session, for so many steps each. */
const OPENS = 3;
const STEPS = byScale(50, 500);

describe("a disk has exactly what was written to it, and its image stays sound", () => {
  it.each(MODEL_RECIPES.map((recipe) => [recipe.name, recipe] as const))(
    "%s",
    async (_, recipe) => {
      await withMemoryScratch("model", async (root) => {
        await new ModelRun(root, recipe).run(SESSIONS, async (directory, content, random) => {
          const drawer = new StepDrawer(random, { ...recipe, virtualSize: content.length });
          for (let open = 0; open < OPENS; open++) {
            const { disk, closeFiles } = openLocal(directory, recipe, randomPolicy(random, recipe));
            try {
              expect(disk.virtualSize).toBe(content.length);
              workOnDisk(disk, drawer, STEPS, content);
              disk.close();
            } finally {
              closeFiles();
            }
          }
        });
      });
    },
  );
});
