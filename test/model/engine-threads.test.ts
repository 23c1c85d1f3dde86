/** Several threads with a disk each, as the daemon has them, at work on parts of it that share clusters. */

import { join } from "node:path";
import { describe, it } from "vitest";
import { closeChain, openChain } from "../../src/block/open-chain.ts";
import { secretsOf } from "../support/crash-engine.ts";
import { IMAGE_NAME } from "../support/crash-images.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { byScale } from "../support/scale.ts";
import { bundleWorker } from "../unit/bundled-worker.ts";
import { MODEL_RECIPES } from "./model-recipes.ts";
import { ModelRun } from "./model-session.ts";
import { randomPolicy } from "./random-work.ts";
import { THREADS, workInThreads } from "./thread-work.ts";

const SESSIONS = byScale(2, 5);
const STEPS = byScale(80, 600);
/** Disks of more are for one thread: each one keeps the whole content. */
const VIRTUAL_SIZE_MAX = 2 ** 27;

describe("threads that write to neighbouring parts of a disk do not disturb each other", () => {
  const recipes = MODEL_RECIPES.filter(
    ({ virtualSize, growth }) => virtualSize <= VIRTUAL_SIZE_MAX && growth === undefined,
  );

  it.each(recipes.map((recipe) => [recipe.name, recipe] as const))("%s", async (_, recipe) => {
    const script = await bundleWorker(new URL("./engine-thread.ts", import.meta.url));
    await withMemoryScratch("threads", async (root) => {
      await new ModelRun(root, recipe).run(SESSIONS, async (directory, content, random) => {
        const chain = openChain(join(directory, IMAGE_NAME), {
          format: recipe.format,
          backingPolicy: "any",
          forceShare: false,
          secrets: secretsOf(recipe),
          writing: { policy: randomPolicy(random, recipe), threads: THREADS + 1 },
        });
        try {
          const more = { directory, recipe, content, random, steps: STEPS };
          await workInThreads({ script, chain, ...more });
        } finally {
          closeChain(chain);
        }
      });
    });
  });
});
