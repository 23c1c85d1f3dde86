// Allocation statistics of images that are damaged at random: one line that says why there are none, or numbers that add up.

import { statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../src/errors.ts";
import { mutate } from "../support/hostile-mutator.ts";
import { QCOW2_SAMPLES, qcow2Sample, qedSample } from "../support/hostile-samples.ts";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { Random } from "../support/random.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { engineStats } from "../support/stats-engine.ts";

/** Mutants of each kind. */
const COUNT = byScale(80, 2000);

type Fields = Readonly<Record<string, unknown>>;

function sumOf(fields: Fields): number {
  return Object.keys(fields).reduce((sum, name) => sum + numberIn(fields, name), 0);
}

function expectSums(path: string, stats: Fields): void {
  const {
    "file-size": fileSize,
    "used-overrun": overrun,
    ...classes
  } = asRecord(stats["alloc-info"]);
  expect(fileSize).toBe(statSync(path).size);
  expect(sumOf(classes)).toBe(fileSize);
  expect(overrun).toBeGreaterThanOrEqual(0);
  const layers = asArray(stats["layers"]).map(asRecord);
  const served = layers.reduce((sum, layer) => sum + numberIn(layer, "bytes"), 0);
  expect(served + numberIn(stats, "no-layer")).toBe(sumOf(asRecord(stats["guest"])));
}

/** Returns whether there were numbers. */
function tryStats(path: string, format: "qcow2" | "qed"): boolean {
  let stats: Fields;
  try {
    stats = engineStats(path, format);
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    expect(error.message).toMatch(/^[^\n]+: [^\n]+$/);
    return false;
  }
  expectSums(path, stats);
  return true;
}

async function tryMutants(name: string, bytes: Buffer, format: "qcow2" | "qed"): Promise<void> {
  const random = new Random(`hostile stats ${name}`);
  await withScratch("hostile-stats", async (directory) => {
    const path = join(directory, "image");
    writeFileSync(path, bytes);
    expect(tryStats(path, format)).toBe(true);
    for (let index = 0; index < COUNT; index++) {
      const mutant = mutate(bytes, random);
      writeFileSync(path, mutant.bytes);
      try {
        tryStats(path, format);
      } catch (cause) {
        throw new Error(`mutant ${index}: ${mutant.changes.join(", ")}`, { cause });
      }
    }
  });
}

describe("allocation statistics of damaged images", () => {
  it.each(QCOW2_SAMPLES)("qcow2, %s", async (name) => {
    await tryMutants(name, qcow2Sample(name).bytes, "qcow2");
  });

  it("QED", async () => {
    await tryMutants("qed", qedSample().bytes, "qed");
  });
});
