// A repair of QED that is stopped at any moment: qemu-img finds the image no worse than before, and another repair finishes the work.

import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { repairQed } from "../../src/formats/qed/check/repair.ts";
import { engineCheck } from "../support/check-engine.ts";
import { looksAlike, qemuCheck, qemuRepair } from "../support/check-oracle.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import {
  DamageQed,
  QED_INVALID,
  QED_LEAKS,
  QED_SHARED,
  type QedDamage,
} from "../support/damage-qed.ts";
import { QED_FEATURE_NEED_CHECK } from "../support/qed-builder.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

const CLUSTER = 4096;
/** Header fields, bytes from the start. */
const FEATURES = 16;
const AUTOCLEAR = 32;

let directory: string;
let sample: Buffer;

beforeAll(async () => {
  directory = await makeScratch("check-qed-crash");
  const path = join(directory, "sample.qed");
  const size = 3 * 1024 * CLUSTER;
  await createImage(path, "qed", { size, options: { cluster_size: CLUSTER, table_size: 2 } });
  await qemuIo(path, "qed", ["write -P 1 0 64k", "write -P 2 3M 100k", "write -P 3 9M 40k"]);
  sample = SparseFile.load(path).bytesAt(0, SparseFile.load(path).length);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

const KINDS: Readonly<Record<string, QedDamage>> = { ...QED_LEAKS, ...QED_INVALID, ...QED_SHARED };

/** Several kinds at once, so that a repair has all its steps. */
const MIXTURES: readonly (readonly string[])[] = [
  ["leaks at the end", "the need-check bit"],
  ["L2 entries that are no places", "leaks at the end", "the need-check bit"],
  ["garbage in an L2 table", "an L1 entry that is no place", "the need-check bit"],
  ["a file that is cut off", "the need-check bit"],
  ["two L2 entries of one cluster", "an L2 entry that is no place", "the need-check bit"],
];

/** A damaged image, and what a repair makes of it. */
interface Course {
  readonly initial: SparseFile;
  /** Repaired by QEMU. */
  readonly final: string;
  readonly corruptionsBefore: number;
  readonly corruptionsAfter: number;
}

async function corruptionsOf(path: string): Promise<number> {
  return (await qemuCheck(path, "qed")).counts?.corruptions ?? Number.NaN;
}

async function damage(names: readonly string[], random: Random): Promise<Course> {
  const image = new DamageQed(Buffer.from(sample));
  for (const name of names) KINDS[name]?.(image, random);
  // A feature that nobody knows: a repair clears it before it writes anything else.
  image.setU64(AUTOCLEAR, 1n);
  const final = join(directory, "final.qed");
  writeFileSync(final, image.bytes);
  const initial = SparseFile.load(final);
  const corruptionsBefore = await corruptionsOf(final);
  await qemuRepair(final, "all", "qed");
  return { initial, final, corruptionsBefore, corruptionsAfter: await corruptionsOf(final) };
}

async function examine(file: SparseFile, course: Course, context: string): Promise<void> {
  const { initial, final, corruptionsBefore, corruptionsAfter } = course;
  const state = join(directory, "state.qed");
  file.save(state);
  const found = await corruptionsOf(state);
  expect(found, context).toBeLessThanOrEqual(corruptionsBefore);
  const features = file.bytesAt(FEATURES, 8).readUInt32LE();
  if (found > 0) expect(features & QED_FEATURE_NEED_CHECK, context).not.toBe(0);
  const tables = (one: SparseFile): Buffer => one.bytesAt(CLUSTER, one.length - CLUSTER);
  const isChanged = !tables(file).equals(tables(initial));
  if (isChanged) expect(file.bytesAt(AUTOCLEAR, 8).readBigUInt64LE(), context).toBe(0n);
  engineCheck(state, "all", "qed");
  expect(await corruptionsOf(state), context).toBe(corruptionsAfter);
  if (corruptionsAfter === 0) expect(await looksAlike(final, state, "qed"), context).toBe(true);
}

it.each(MIXTURES.map((names) => [names.join(", "), names] as const))("%s", async (title, names) => {
  const random = new Random(title);
  for (let round = 0; round < byScale(1, 10); round++) {
    const course = await damage(names, random);
    const log: RecordingLog = { operations: [] };
    const storage = new RecordingStorage("disk.qed", course.initial.clone(), log, 0);
    repairQed(storage, "all", () => undefined);
    const states = new CrashStates([course.initial], log);
    const positions = log.operations.length + 1;
    for (let count = 0; count < byScale(12, 100); count++) {
      const position = random.below(positions);
      const strategy = random.pick(STRATEGIES);
      const how = random.below(4) === 0 ? "prefix" : strategy;
      const [file] =
        how === "prefix" ? states.prefix(position) : states.random(position, strategy, random);
      if (file === undefined) throw new Error("no state");
      await examine(file, course, `${how} of ${position} of ${positions - 1} operations`);
    }
  }
});
