/** The crash tests have teeth: where the engine did not wait for the disk, they find a state that shows it. */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { recoverInPlace } from "../support/crash-engine.ts";
import { contentOf, imageFiles, makeImage } from "../support/crash-images.ts";
import { RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { type RecordedSession, recordSession } from "../support/crash-session.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { CrashVerifier } from "../support/crash-verifier.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import type { LoggedOperation, RecordingLog } from "../support/recording-storage.ts";

const STEPS = 40;
/** States that are tried until one is found. */
const STATES_MAX = 1000;

/** The log as if only the disk's user had waited for the disk, and not the engine on its own account. */
function withoutBarriers({ done, log }: RecordedSession): RecordingLog {
  const wanted = new Set<number>();
  for (const { what, start, end } of done) {
    if (what !== "flush" && what !== "close") continue;
    for (let position = start; position < end; position++) wanted.add(position);
  }
  const operations = log.operations.map((operation, position): LoggedOperation => {
    if (operation.kind !== "sync" || wanted.has(position)) return operation;
    return { kind: "zero", file: operation.file, offset: 0, length: 0 };
  });
  return { operations };
}

describe("a barrier that the engine leaves out is noticed", () => {
  it.each([
    ...["4k", "4k with snapshots", "64k over qcow2", "64k compressed", "extended L2 64k"],
    ...["QED 4k", "QED 64k over qcow2"],
  ])("%s", async (name) => {
    const recipe = RECIPES.find((each) => each.name === name);
    if (recipe === undefined) throw new Error(`no recipe ${name}`);
    await withMemoryScratch("barriers", async (root) => {
      const directory = join(root, "work");
      mkdirSync(directory);
      const random = new Random(`barriers of ${name}`);
      await makeImage(directory, recipe, random);
      const files = imageFiles(directory, recipe).map((path) => SparseFile.load(path));
      const content = await contentOf(directory, recipe);
      const options = { recipe, directory, files, content, steps: STEPS, random };
      const session = recordSession(options);
      const states = new CrashStates(session.initial, withoutBarriers(session));
      const verifier = new CrashVerifier({
        root,
        recipe,
        recover: (crashed) => recoverInPlace(crashed, recipe),
        snapshots: new Map(),
      });
      const tryStates = async (): Promise<void> => {
        for (let number = 0; number < STATES_MAX; number++) {
          const position = random.between(0, session.log.operations.length);
          const strategy = random.pick(STRATEGIES);
          const mixed = strategy === "any-order";
          await verifier.add({
            files: states.random(position, strategy, random),
            allowed: session.model.allowedAfterPowerCut(position, { mixed }),
            // Of QED: what a table refers to must be there, whatever the need-check bit says.
            mayLeak: true,
            describe: () => `position ${position}, ${strategy}`,
          });
        }
      };
      await expect(tryStates()).rejects.toThrow(
        /qemu-img check says|was never there|what was there/,
      );
    });
  });
});
