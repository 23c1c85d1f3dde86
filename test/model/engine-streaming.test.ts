/**
 * Threads at work on a disk whose image is streamed meanwhile, and then has no backing file any more: its
 * file is closed, and whoever still read from it would fail, or get the bytes of another one.
 */

import { join } from "node:path";
import { setImmediate as pause } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Disk } from "../../src/block/disk.ts";
import { closeBelow, closeChain, openChain } from "../../src/block/open-chain.ts";
import { StreamJob } from "../../src/block/stream-job.ts";
import { setBackingFile } from "../../src/formats/formats.ts";
import { LocalFile } from "../../src/storage/local-file.ts";
import { secretsOf } from "../support/crash-engine.ts";
import { IMAGE_NAME } from "../support/crash-images.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { asRecord } from "../support/json.ts";
import { imageInfo } from "../support/qemu.ts";
import { byScale } from "../support/scale.ts";
import { bundleWorker } from "../unit/bundled-worker.ts";
import { MODEL_RECIPES } from "./model-recipes.ts";
import { ModelRun } from "./model-session.ts";
import { randomPolicy } from "./random-work.ts";
import { THREADS, workInThreads } from "./thread-work.ts";

const RUNS = byScale(1, 8);
const STEPS = byScale(150, 600);

describe("threads go on while an image is streamed, and after it", () => {
  const recipes = MODEL_RECIPES.filter(
    ({ backing, snapshots, growth }) => backing && !snapshots && growth === undefined,
  );
  const cases = Array.from({ length: RUNS }, (_, number) =>
    recipes.map((recipe) => [recipe.name, number, recipe] as const),
  ).flat();

  it.each(cases)("%s, run %i", async (_, _number, recipe) => {
    const script = await bundleWorker(new URL("./engine-thread.ts", import.meta.url));
    await withMemoryScratch("streaming", async (root) => {
      await new ModelRun(root, recipe).run(1, async (directory, content, random) => {
        const image = join(directory, IMAGE_NAME);
        let chain = openChain(image, {
          format: recipe.format,
          backingPolicy: "any",
          forceShare: false,
          secrets: secretsOf(recipe),
          writing: { policy: randomPolicy(random, recipe), threads: THREADS + 1 },
        });
        const meanwhile = async (disk: Disk): Promise<void> => {
          const job = new StreamJob(disk, chain.layers.length);
          // Threads take their time to start.
          for (let wait = random.below(200); wait > 0; wait--) {
            await new Promise((resolve) => setTimeout(resolve, 1));
          }
          while (!job.step()) await pause();
          const [top] = chain.layers;
          if (top === undefined) throw new RangeError("no image");
          disk.dropBacking(() => {
            const file = new LocalFile(top.file);
            const storage = new LocalFile({ ...top.file, length: file.currentLength() });
            setBackingFile(recipe.format, storage, undefined);
          });
          chain = closeBelow(chain);
        };
        try {
          const more = { directory, recipe, content, random, steps: STEPS };
          await workInThreads({ script, chain, ...more, meanwhile });
        } finally {
          closeChain(chain);
        }
        expect(asRecord(await imageInfo([image]))["backing-filename"]).toBeUndefined();
      });
    });
  });
});
