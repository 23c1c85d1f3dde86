// Damaged images of all kinds: our check says what qemu-img's says, and our repair leaves what qemu-img accepts.

import { closeSync, copyFileSync, openSync, readSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineCheck } from "../support/check-engine.ts";
import { looksAlike, qemuCheck, qemuRepair } from "../support/check-oracle.ts";
import { DamageImage } from "../support/damage-image.ts";
import { CROSSED, type Damage, LASTING, REPAIRABLE } from "../support/damage-kinds.ts";
import { type DamageSample, makeDamageSamples } from "../support/damage-samples.ts";
import { Random } from "../support/random.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

let directory: string;
let samples: DamageSample[];

beforeAll(async () => {
  directory = await makeScratch("check");
  samples = await makeDamageSamples(directory);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** What may be expected of a repair. */
type Prospect = "clean" | "lasting" | "crossed";

interface Examination {
  readonly damage: Damage;
  readonly prospect: Prospect;
  readonly random: Random;
  /** Where the damaged image goes; others go beside it. */
  readonly damaged: string;
}

/** Damages one sample, checks and repairs it; false if there was nothing to damage in this way. */
async function examine(
  sample: DamageSample,
  { damage, prospect, random, damaged }: Examination,
): Promise<boolean> {
  const image = new DamageImage(Buffer.from(sample.bytes));
  if (!damage(image, random)) return false;
  const repaired = `${damaged}.repaired`;
  const byQemu = `${damaged}.by-qemu`;
  writeFileSync(damaged, image.bytes);
  copyFileSync(damaged, repaired);

  const oracle = await qemuCheck(damaged);
  const ours = engineCheck(damaged);
  const context = `${sample.name}: ${ours.lines.join("; ")} / ${oracle.stderr}`;
  expect.soft(ours.counts ?? ours.status, context).toEqual(oracle.counts ?? oracle.status);

  const onlyLeaks = `${damaged}.only-leaks`;
  copyFileSync(damaged, onlyLeaks);
  copyFileSync(damaged, byQemu);
  const leaksByQemu = await qemuRepair(byQemu, "leaks");
  const leaks = engineCheck(onlyLeaks, "leaks");
  const leaksContext = `${context} --- leaks: ${leaks.lines.join("; ")} / ${leaksByQemu.stderr}`;
  const comparable = leaksByQemu.status !== undefined && keepsSnapshots(byQemu, image);
  if (comparable) expect.soft(leaks.status, leaksContext).toBe(leaksByQemu.status);
  const leaksAfter = await qemuCheck(onlyLeaks);
  if (leaks.counts !== undefined) {
    expect.soft(leaks.counts, leaksContext).toEqual(leaksAfter.counts);
  }

  copyFileSync(damaged, byQemu);
  const repair = engineCheck(repaired, "all");
  const after = await qemuCheck(repaired);
  const afterContext = `${context} --- after ${repair.lines.join("; ")} / ${after.stderr}`;
  expect.soft(repair.counts ?? repair.status, afterContext).toEqual(after.counts ?? after.status);
  const { status: byQemuStatus } = await qemuRepair(byQemu, "all");
  if (prospect === "clean" || (byQemuStatus === 0 && keepsSnapshots(byQemu, image))) {
    expect.soft(after.status, afterContext).toBe(0);
  }
  if (prospect !== "crossed") {
    expect.soft(await looksAlike(damaged, repaired), afterContext).not.toBe(false);
  }
  return true;
}

/** QEMU's repair can lose all snapshots of an image that has bitmaps, too: then nothing compares. */
function keepsSnapshots(path: string, image: DamageImage): boolean {
  // The header alone is read: QEMU makes some files huge.
  const head = Buffer.alloc(512);
  const fd = openSync(path, "r");
  readSync(fd, head);
  closeSync(fd);
  return new DamageImage(head).header("nb_snapshots") === image.header("nb_snapshots");
}

describe.each([
  ["clean", REPAIRABLE],
  ["lasting", LASTING],
  ["crossed", CROSSED],
] as const)("damage (%s)", (prospect, kinds) => {
  it.each(Object.entries(kinds))("%s", async (name, damage) => {
    const random = new Random(name);
    const damaged = join(directory, `${name}.qcow2`);
    let left = byScale(3, 40);
    for (let tries = 0; left > 0 && tries < samples.length * 8; tries++) {
      const sample = samples[random.below(samples.length)];
      if (sample !== undefined && (await examine(sample, { damage, prospect, random, damaged })))
        left--;
    }
  });
});
