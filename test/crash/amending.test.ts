/**
 * Crashes of the host at any moment of amending: the disk and its snapshots never change, nothing but leaks is left
 * behind, and the image is one of the old version and width, or of the new ones.
 */

import { mkdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { changeRefcountWidth } from "../../src/formats/qcow2/amend/refcount-width.ts";
import { expandSnapshotZeros } from "../../src/formats/qcow2/amend/snapshot-zeros.ts";
import { downgradeToVersion2, upgradeToVersion3 } from "../../src/formats/qcow2/amend/version.ts";
import {
  contentOf,
  contentOfSnapshot,
  IMAGE_NAME,
  imageFiles,
  isSnapshotIntact,
  makeImage,
  qemuImg,
} from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(7, 300);
const MIB = 2 ** 20;

const V3 = { format: "qcow2", group: "special", virtualSize: 2 * MIB, clusterSize: 4096 } as const;
const V2 = { compat: "0.10" } as const;
const OVERLAY = {
  ...V3,
  backing: { format: "raw", size: MIB },
  content: "some",
  snapshots: 2,
} as const;

type Amend = (storage: RecordingStorage) => void;

function expandSnapshots(storage: RecordingStorage): void {
  expect(Array.from(expandSnapshotZeros(storage)).length).toBeGreaterThan(0);
}

const CASES: readonly (readonly [string, Omit<ImageRecipe, "name">, Amend])[] = [
  ["upgrade", { ...V3, options: V2, content: "some" }, upgradeToVersion3],
  ["upgrade with snapshots", { ...V3, options: V2, snapshots: 2 }, upgradeToVersion3],
  ["downgrade", { ...V3, content: "some" }, downgradeToVersion2],
  ["downgrade with a snapshot", { ...V3, content: "some", snapshots: 1 }, downgradeToVersion2],
  ["zeros of snapshots", OVERLAY, expandSnapshots],
  ["zeros of snapshots, 512-byte clusters", { ...OVERLAY, clusterSize: 512 }, expandSnapshots],
  ["narrower refcounts", { ...V3, content: "some" }, (file) => changeRefcountWidth(file, 1)],
  ["wider refcounts", { ...V3, snapshots: 2 }, (file) => changeRefcountWidth(file, 64)],
  [
    "wider refcounts, 512-byte clusters",
    { ...V3, clusterSize: 512, prefill: MIB },
    (file) => changeRefcountWidth(file, 32),
  ],
];

async function expectIntact(
  directory: string,
  label: string,
  { mayLeak }: { mayLeak: boolean },
): Promise<void> {
  const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
  const allowed = mayLeak ? [0, 3] : [0];
  expect(allowed, `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
}

describe("a crash at any moment of amending leaves the disk as it is", () => {
  it.each(CASES)("%s", async (name, shape, amend) => {
    const recipe: ImageRecipe = { ...shape, name };
    await withMemoryScratch("amending", async (root) => {
      const directory = `${root}/work`;
      mkdirSync(directory);
      await makeImage(directory, recipe, new Random(`image ${name}`));
      const wanted = await contentOf(directory, recipe);
      const hasSnapshot = recipe.snapshots !== undefined;
      const snapshot = hasSnapshot
        ? await contentOfSnapshot(directory, recipe, "start-0")
        : undefined;
      const [path = ""] = imageFiles(directory, recipe);
      const file = SparseFile.load(path);
      const initial = [file.clone()];
      const log: RecordingLog = { operations: [] };
      amend(new RecordingStorage(path, file, log, 0));
      const states = new CrashStates(initial, log);
      const random = new Random(`amending ${name}`);
      const last = log.operations.length;
      for (let number = 0; number <= STATES; number++) {
        const isEnd = number === STATES;
        const position = isEnd ? last : random.between(0, last);
        const strategy = random.pick(STRATEGIES);
        const [state] = isEnd ? states.prefix(last) : states.random(position, strategy, random);
        state?.save(path);
        const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
        await expectIntact(directory, label, { mayLeak: !isEnd });
        expect((await contentOf(directory, recipe)).equals(wanted), label).toBe(true);
        if (snapshot === undefined || number % 4 !== 0) continue;
        expect(await isSnapshotIntact(directory, recipe, "start-0", snapshot), label).toBe(true);
      }
    });
  });
});
