/** One session of the engine on recorded files: it opens the image, does random work, and closes it. */

import { mkdirSync, rmSync } from "node:fs";
import type { WritePolicy } from "../../src/block/write-policy.ts";
import { openRecorded } from "./crash-engine.ts";
import { imageFiles } from "./crash-images.ts";
import type { ImageRecipe } from "./crash-recipes.ts";
import { describeStep, StepDrawer, StepRunner } from "./crash-workload.ts";
import { DiskModel } from "./disk-model.ts";
import type { Random } from "./random.ts";
import type { SparseFile } from "./recording-sparse-file.ts";
import { describeOperation, type RecordingLog } from "./recording-storage.ts";

/** Lines of the story that messages tell. */
const STORY_STEPS = 12;
const STORY_OPERATIONS = 24;

export interface SessionOptions {
  readonly recipe: ImageRecipe;
  /** Where the image lies while it is open; the parent directory has the backing file. */
  readonly directory: string;
  /** The files to start from, and what the disk contains then. */
  readonly files: readonly SparseFile[];
  readonly content: SparseFile;
  readonly steps: number;
  readonly random: Random;
}

/** What was done, and where the log stood before and after it. */
export interface DoneStep {
  readonly what: string;
  readonly start: number;
  readonly end: number;
}

/** What a disk may contain after a crash. */
export type CrashModel = Pick<DiskModel, "allowedAfterKill" | "allowedAfterPowerCut">;

export interface RecordedSession {
  /** The files before it. */
  readonly initial: readonly SparseFile[];
  /** The files after it. */
  readonly files: readonly SparseFile[];
  readonly log: RecordingLog;
  readonly model: CrashModel;
  readonly done: readonly DoneStep[];
}

/** @throws {Error} the engine failed, or read something else than what was written */
export function recordSession(options: SessionOptions): RecordedSession {
  const { recipe, directory, random } = options;
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory);
  imageFiles(directory, recipe).forEach((path, index) => {
    options.files[index]?.save(path);
  });
  const log: RecordingLog = { operations: [] };
  const initial = options.files.map((file) => file.clone());
  const model = new DiskModel(options.content);
  const done: DoneStep[] = [];
  const session: RecordedSession = { initial, files: [...options.files], log, model, done };
  const follow = <T>(what: string, action: () => T): T => {
    const start = log.operations.length;
    try {
      return action();
    } catch (error) {
      const position = log.operations.length;
      const story = storyAt(session, position);
      throw new Error(`${what} fails: ${String(error)}\n${story}`, { cause: error });
    } finally {
      done.push({ what, start, end: log.operations.length });
    }
  };

  const policy: WritePolicy = {
    detectZeroes: random.pick(["on", "unmap", "off"]),
    discard: random.pick(["unmap", "unmap", "ignore"]),
    growable: recipe.growth !== undefined,
    copyOnRead: random.pick([true, true, false]),
  };
  const { disk, closeFiles } = follow(
    `open, zeroes ${policy.detectZeroes}, discard ${policy.discard}`,
    () => openRecorded(directory, recipe, policy, session.files, log),
  );
  try {
    const runner = new StepRunner(disk);
    const drawer = new StepDrawer(random, { ...recipe, virtualSize: model.content.length });
    for (let number = 0; number < options.steps; number++) {
      const step = drawer.draw();
      const start = log.operations.length;
      follow(describeStep(step), () => runner.run(step, model.content));
      model.done(step, { start, end: log.operations.length });
    }
    follow("close", () => disk.close());
  } finally {
    closeFiles();
  }
  model.flushed(log.operations.length);
  return session;
}

/** What led to a position of the log, for messages. */
export function storyAt({ done, log }: RecordedSession, position: number): string {
  const begun = done.filter(({ start, end }) => start < position || end <= position);
  const steps = begun.slice(-STORY_STEPS).map(({ what, start, end }) => {
    const state = end > position ? " (under way)" : "";
    return `  ${start}..${end} ${what}${state}`;
  });
  const first = Math.max(0, position - STORY_OPERATIONS);
  const operations = log.operations
    .slice(first, position)
    .map((operation, index) => `  ${first + index} ${describeOperation(operation)}`);
  return ["steps:", ...steps, "operations:", ...operations].join("\n");
}
