/**
 * Crashes while several threads write to one image, each to its own part of the disk, and all read all of it:
 * whatever their storage calls' order was, leaks at most are left behind, and what was flushed is there.
 */

import { cpSync, existsSync, mkdirSync, mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { recoverInPlace } from "../support/crash-engine.ts";
import {
  BACKING_NAME,
  contentOf,
  contentOfSnapshot,
  imageFiles,
  makeImage,
} from "../support/crash-images.ts";
import { type ImageRecipe, RECIPES } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates } from "../support/crash-states.ts";
import {
  keepRecording,
  loadRecording,
  recordThreads,
  sessionOf,
  type ThreadsRecording,
} from "../support/crash-threads.ts";
import { CrashVerifier } from "../support/crash-verifier.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { byScale, LONG } from "../support/scale.ts";
import { verifySession } from "../support/verify-session.ts";
import { bundleWorker } from "../unit/bundled-worker.ts";

/** Where a recording was kept that is to be verified again, as messages of this test say. */
const KEPT = process.env["TSIMGFS_CRASH_RECORDING"];

const SESSIONS = byScale(1, 2);
const STEPS = byScale(25, 60);
const PLAN = { prefixes: byScale(12, 80), randomStates: byScale(20, 120) };

const QUICK_RECIPES = [
  "512",
  "4k over a shorter raw",
  "v2 4k over qcow2 with a snapshot",
  "extended L2 16k over qcow2 with a snapshot",
  "QED 4k over a shorter raw",
];

const CHOSEN = RECIPES.filter(
  ({ name, growth, dirty }) =>
    growth === undefined && dirty !== true && (LONG || QUICK_RECIPES.includes(name)),
);

/** What is verified. */
interface Subject {
  readonly root: string;
  readonly recipe: ImageRecipe;
  readonly label: string;
  readonly snapshots: ReadonlyMap<string, SparseFile>;
}

/** Where the image lies; its backing file lies one directory above. */
function workOf(root: string): string {
  return join(root, "work");
}

async function snapshotsOf(root: string, recipe: ImageRecipe): Promise<Map<string, SparseFile>> {
  const snapshots = new Map<string, SparseFile>();
  for (let index = 0; index < (recipe.snapshots ?? 0); index++) {
    const name = `start-${index}`;
    snapshots.set(name, await contentOfSnapshot(workOf(root), recipe, name));
  }
  return snapshots;
}

async function verify(subject: Subject, recording: ThreadsRecording): Promise<void> {
  const { root, recipe, label, snapshots } = subject;
  const recover = (state: string): void => recoverInPlace(state, recipe);
  const verifier = new CrashVerifier({ root, recipe, recover, snapshots });
  const session = sessionOf(recording);
  const { operations } = session.log;
  const [last] = new CrashStates(session.initial, session.log).prefix(operations.length);
  expect(last?.equals(session.files[0] ?? SparseFile.empty()), "the log tells all").toBe(true);
  const more = { label, session, recipe, directory: workOf(root), mayLeak: false };
  await verifySession(verifier, more, PLAN, new Random(label));
  expect(verifier.count).toBeGreaterThan(PLAN.randomStates);
}

/** Keeps a recording that breaks a promise, since no seed makes it again. */
function keep({ root, label }: Subject, recording: ThreadsRecording): string {
  const directory = mkdtempSync(join(tmpdir(), "tsimgfs-crash-recording-"));
  keepRecording(directory, label, recording);
  const backing = join(root, BACKING_NAME);
  if (existsSync(backing)) cpSync(backing, join(directory, BACKING_NAME));
  return `TSIMGFS_CRASH_RECORDING=${directory} TSIMGFS_TEST_SEED=${SEED} verifies it again`;
}

describe("crashes while several threads are at work", () => {
  it.each(KEPT === undefined ? CHOSEN.map((recipe) => [recipe.name, recipe] as const) : [])(
    "leave leaks at most, and what was flushed: %s",
    async (name, recipe) => {
      const script = await bundleWorker(new URL("../support/crash-thread.ts", import.meta.url));
      await withMemoryScratch("crash-threads", async (root) => {
        const directory = workOf(root);
        mkdirSync(directory);
        await makeImage(directory, recipe, new Random(`image ${name}`));
        const snapshots = await snapshotsOf(root, recipe);
        for (let number = 0; number < SESSIONS; number++) {
          const label = `session ${number} of threads on "${name}"`;
          const content = await contentOf(directory, recipe);
          const options = { script, recipe, directory, content, label, steps: STEPS };
          const recording = await recordThreads(options);
          const subject = { root, recipe, label, snapshots };
          try {
            await verify(subject, recording);
          } catch (error) {
            const again = keep(subject, recording);
            throw new Error(`${again}\n${String(error)}`, { cause: error });
          }
        }
      });
    },
  );

  it.each(KEPT === undefined ? [] : [KEPT])("leave what they should: %s", async (kept) => {
    const { label, recording } = loadRecording(kept);
    const recipe = RECIPES.find(({ name }) => label.endsWith(`"${name}"`));
    if (recipe === undefined) throw new Error(`no recipe for ${label}`);
    await withMemoryScratch("crash-threads", async (root) => {
      mkdirSync(workOf(root));
      const backing = join(kept, BACKING_NAME);
      if (existsSync(backing)) cpSync(backing, join(root, BACKING_NAME));
      imageFiles(workOf(root), recipe).forEach((path, index) => {
        recording.initial[index]?.save(path);
      });
      await verify({ root, recipe, label, snapshots: await snapshotsOf(root, recipe) }, recording);
    });
  });
});
