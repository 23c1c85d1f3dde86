// Damaged QED images of all kinds: our check says what qemu-img's says, and our repair leaves what qemu-img's leaves, but for leaks.

import { copyFileSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { engineCheck } from "../support/check-engine.ts";
import { looksAlike, qemuCheck, qemuRepair } from "../support/check-oracle.ts";
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
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

const KiB = 1024;

let directory: string;
let samples: Buffer[];

beforeAll(async () => {
  directory = await makeScratch("check-qed");
  await createImage(join(directory, "base.raw"), "raw", { size: 4096 * KiB });
  samples = await Promise.all([
    makeSample("plain", { cluster: 64 * KiB, table: 4, backed: false }),
    makeSample("small", { cluster: 4 * KiB, table: 2, backed: false }),
    makeSample("wide", { cluster: 4 * KiB, table: 16, backed: true }),
    // No larger: qemu-img compare overflows where nothing is in a table of 4 GiB.
    makeSample("backed", { cluster: 64 * KiB, table: 2, backed: true }),
  ]);
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function makeSample(
  name: string,
  { cluster, table, backed }: { cluster: number; table: number; backed: boolean },
): Promise<Buffer> {
  const path = join(directory, `${name}.qed`);
  const perTable = ((table * cluster) / 8) * cluster;
  await createImage(path, "qed", {
    size: perTable * 3 + 512,
    options: { cluster_size: cluster, table_size: table },
    ...(backed ? { backing: { file: join(directory, "base.raw"), format: "raw" } } : {}),
  });
  await qemuIo(path, "qed", [
    `write -P 1 0 ${5 * cluster}`,
    `write -P 2 ${9.5 * cluster} ${3 * cluster}`,
    `write -P 3 ${perTable - cluster} ${2 * cluster}`,
    `write -P 4 ${6 * cluster} 512`,
    `write -z ${20 * cluster} ${4 * cluster}`,
    `write -P 5 ${3 * perTable} 512`,
  ]);
  return readFileSync(path);
}

async function examine(
  bytes: Buffer,
  damages: readonly QedDamage[],
  random: Random,
): Promise<void> {
  const image = new DamageQed(Buffer.from(bytes));
  for (const damage of damages) damage(image, random);
  const damaged = join(directory, "damaged.qed");
  const onlyLeaks = join(directory, "only-leaks.qed");
  const repaired = join(directory, "repaired.qed");
  const byQemu = join(directory, "by-qemu.qed");
  writeFileSync(damaged, image.bytes);
  for (const copy of [onlyLeaks, repaired, byQemu]) copyFileSync(damaged, copy);

  const oracle = await qemuCheck(damaged, "qed");
  const ours = engineCheck(damaged, undefined, "qed");
  const lines = ours.lines.slice(0, 5).join("; ");
  const context = `cluster size ${image.clusterSize()}: ${lines} / ${oracle.stderr}`;
  expect(ours.counts ?? ours.status, context).toEqual(oracle.counts ?? oracle.status);
  expect(readFileSync(damaged).equals(image.bytes)).toBe(true);
  if (oracle.counts === undefined) return;

  const repair = engineCheck(repaired, "all", "qed");
  const leaks = engineCheck(onlyLeaks, "leaks", "qed");
  await qemuRepair(byQemu, "all", "qed");
  const [left, after, leaksAfter] = await Promise.all(
    [byQemu, repaired, onlyLeaks].map((path) => qemuCheck(path, "qed")),
  );
  expect(repair.counts, context).toEqual(after?.counts);
  const corruptionsLeft = left?.counts?.corruptions ?? Number.NaN;
  expect(repair.corruptionsFixed, context).toBe(oracle.counts.corruptions - corruptionsLeft);
  const result = new DamageQed(readFileSync(repaired));
  const cut = image.clusters() - result.clusters();
  expect(repair.leaksFixed, context).toBe(cut);
  expect(after?.counts, context).toMatchObject({
    corruptions: corruptionsLeft,
    leaks: (left?.counts?.leaks ?? Number.NaN) - cut,
  });
  if (corruptionsLeft === 0) {
    expect(result.header("features") & QED_FEATURE_NEED_CHECK, context).toBe(0);
    expect(await looksAlike(byQemu, repaired, "qed"), context).toBe(true);
    expect(isEndUsed(result), context).toBe(true);
  } else {
    // QEMU clears the bit all the same, when it closes the image.
    expect(result.header("features"), context).toBe(image.header("features"));
    expect(cut, context).toBe(0);
  }

  expect(leaks.counts, context).toEqual(leaksAfter?.counts);
  const untouched = oracle.counts.corruptions > 0;
  const expected = untouched ? image.bytes : result.bytes;
  expect(readFileSync(onlyLeaks).equals(expected), context).toBe(true);
}

/** Whether the last cluster of the file is one of a table, or of data. */
function isEndUsed(image: DamageQed): boolean {
  const ends = [...image.l1(), { word: BigInt(image.header("l1_table_offset")) }].map(
    ({ word }) => Number(word) + image.tableBytes(),
  );
  ends.push(...image.data().map(({ word }) => Number(word) + image.clusterSize()));
  return Math.max(...ends) === image.clusters() * image.clusterSize();
}

describe.each([
  ["leaks", QED_LEAKS],
  ["invalid entries", QED_INVALID],
  ["shared clusters", QED_SHARED],
] as const)("%s", (_, kinds) => {
  it.each(Object.entries(kinds))("%s", async (name, damage) => {
    const random = new Random(name);
    for (let round = 0; round < byScale(1, 60); round++) {
      const sample = samples[random.below(samples.length)] ?? Buffer.alloc(0);
      await examine(sample, [damage], random);
    }
  });
});

it("all of that at once", async () => {
  const random = new Random("mixed QED damage");
  const kinds = Object.values({ ...QED_LEAKS, ...QED_INVALID, ...QED_SHARED });
  for (let round = 0; round < byScale(6, 300); round++) {
    const damages = kinds.filter(() => random.below(5) === 0);
    const sample = samples[random.below(samples.length)] ?? Buffer.alloc(0);
    await examine(sample, damages, random);
  }
});
