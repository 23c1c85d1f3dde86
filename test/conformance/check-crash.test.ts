// A repair that is stopped at any moment: qemu-img finds the image no worse than before, its guest sees the same, and another repair finishes the work.

import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { repairQcow2 } from "../../src/formats/qcow2/check/repair.ts";
import { engineCheck } from "../support/check-engine.ts";
import { harmIn, looksAlike, qemuCheck } from "../support/check-oracle.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { DamageImage } from "../support/damage-image.ts";
import { type Damage, REPAIRABLE } from "../support/damage-kinds.ts";
import { type DamageSample, makeDamageSamples } from "../support/damage-samples.ts";
import { Random } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

let directory: string;
let samples: DamageSample[];

beforeAll(async () => {
  directory = await makeScratch("check-crash");
  samples = await makeDamageSamples(directory);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** Several kinds at once, so that a repair has all its steps. */
const MIXTURES: Readonly<Record<string, readonly (keyof typeof REPAIRABLE)[]>> = {
  "leaks and refcounts too high": [
    "leaked clusters behind the end",
    "a refcount too high",
    "a refcount too high",
  ],
  "refcounts too low": [
    "a shared cluster's refcount too low",
    "a shared cluster's refcount too low",
    "a refcount of zero",
  ],
  "COPIED flags and refcounts": ["COPIED wrong everywhere", "all refcounts random"],
  "a missing block": ["a refcount block missing", "COPIED wrong in an L2 table"],
  "a damaged block": ["a refcount block not aligned", "leaked clusters behind the end"],
  "a reserved bit": ["a shared cluster's refcount too low", "reserved bits in the refcount table"],
  "no table at all": ["no refcount table", "the corrupt bit"],
  "a crash of lazy refcounts": ["dirty, and refcounts as a crash leaves them"],
};

function damageSample(
  sample: DamageSample,
  names: readonly string[],
  random: Random,
): DamageImage | undefined {
  const image = new DamageImage(Buffer.from(sample.bytes));
  let done = false;
  for (const name of names) {
    const damage: Damage | undefined = REPAIRABLE[name];
    if (damage?.(image, random) === true) done = true;
  }
  return done ? image : undefined;
}

it.each(Object.entries(MIXTURES))("%s", async (name, damages) => {
  const random = new Random(name);
  const before = join(directory, `before ${name}.qcow2`);
  const state = join(directory, `state ${name}.qcow2`);
  for (let round = 0; round < byScale(2, 8); round++) {
    const sample = samples[random.below(samples.length)];
    const image = sample && damageSample(sample, damages, random);
    if (sample === undefined || image === undefined) continue;
    writeFileSync(before, image.bytes);
    const { format } = sample;
    const allowed = harmIn(await qemuCheck(before, format));

    const log: RecordingLog = { operations: [] };
    const initial = SparseFile.load(before);
    const storage = new RecordingStorage(before, initial.clone(), log, 0);
    repairQcow2(storage, "all", () => undefined);
    const states = new CrashStates([initial], log);

    const positions = log.operations.length + 1;
    for (let count = 0; count < byScale(6, 15); count++) {
      const position = random.below(positions);
      const strategy = random.pick(STRATEGIES);
      const how = random.below(2) === 0 ? "prefix" : strategy;
      const [file] =
        how === "prefix" ? states.prefix(position) : states.random(position, strategy, random);
      file?.save(state);
      const context = `${sample.name}, ${how} of ${position} of ${positions - 1} operations`;
      const found = harmIn(await qemuCheck(state, format)).filter(
        (harm) => !allowed.includes(harm),
      );
      expect.soft(found, context).toEqual([]);
      expect.soft(await looksAlike(before, state, format), context).not.toBe(false);
      engineCheck(state, "all");
      const after = await qemuCheck(state, format);
      expect.soft(after.status, `${context}: ${after.stderr}`).toBe(0);
      expect.soft(await looksAlike(before, state, format), `${context}, repaired`).not.toBe(false);
    }
  }
});
