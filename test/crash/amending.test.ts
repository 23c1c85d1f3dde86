/**
 * Crashes of the host, kills, and failing calls at any moment of amending: the disk and its snapshots never change,
 * nothing but leaks is left behind, and the image is one of the old version and width, or of the new ones.
 */

import { mkdirSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { planQcow2Amendment, type Qcow2Amendment } from "../../src/formats/qcow2/amend/amend.ts";
import { changeRefcountWidth } from "../../src/formats/qcow2/amend/refcount-width.ts";
import { expandSnapshotZeros } from "../../src/formats/qcow2/amend/snapshot-zeros.ts";
import { downgradeToVersion2, upgradeToVersion3 } from "../../src/formats/qcow2/amend/version.ts";
import { amendment } from "../support/amendment.ts";
import { recoverInPlace } from "../support/crash-engine.ts";
import {
  contentOf,
  contentOfSnapshot,
  IMAGE_NAME,
  imageFiles,
  isSnapshotIntact,
  makeImage,
  qemuImg,
} from "../support/crash-images.ts";
import { DATA_FILE_NAME, type ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { CrashStates, STRATEGIES } from "../support/crash-states.ts";
import { failEach, someCalls } from "../support/failing-calls.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import {
  type FaultHook,
  type RecordingLog,
  RecordingStorage,
} from "../support/recording-storage.ts";
import { byScale } from "../support/scale.ts";

const STATES = byScale(7, 300);
/** Calls of each amendment after which the program is killed, and that fail in one way. */
const KILLS = byScale(3, 200);
const FAILING = byScale(2, 100);
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

/** All that the command does with the file of an image. */
function amended(wanted: Partial<Qcow2Amendment>): Amend {
  return (storage) => {
    const { steps, downgrade } = planQcow2Amendment(storage, amendment(wanted), []);
    for (const step of steps) step(storage);
    downgrade?.(storage);
  };
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
  [
    "version, width and lazy refcounts at once",
    { ...V3, options: V2, content: "some" },
    amended({ version: 3, refcountBits: 1, lazyRefcounts: true }),
  ],
  [
    "version and width back",
    { ...V3, content: "some", snapshots: 1, options: { lazy_refcounts: "on", refcount_bits: 64 } },
    amended({ version: 2, refcountBits: 16, lazyRefcounts: false }),
  ],
  [
    "the name of a data file",
    { ...V3, options: { data_file: DATA_FILE_NAME, data_file_raw: "on" }, content: "some" },
    amended({ dataFile: `./${DATA_FILE_NAME}`, dataFileRaw: false }),
  ],
];

/** In the quick form: each kind of change once. */
const QUICK = CASES.filter((_, index) => index % 2 === 1);

async function expectIntact(
  directory: string,
  label: string,
  { mayLeak }: { mayLeak: boolean },
): Promise<void> {
  const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
  const allowed = mayLeak ? [0, 3] : [0];
  expect(allowed, `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
}

/** An image that is amended, in a directory of its own. */
interface Amended {
  readonly directory: string;
  readonly recipe: ImageRecipe;
  readonly path: string;
  readonly initial: SparseFile;
  /** Amends `file`, which is noted down. */
  amend(file: SparseFile, log: RecordingLog, faultOf?: FaultHook): void;
  /** Expects that QEMU finds no harm, and what was there before. */
  expectSame(label: string, options: { mayLeak: boolean; snapshot: boolean }): Promise<void>;
}

async function withImage(
  name: string,
  shape: Omit<ImageRecipe, "name">,
  amend: Amend,
  body: (image: Amended) => Promise<void>,
): Promise<void> {
  const recipe: ImageRecipe = { ...shape, name };
  await withMemoryScratch("amending", async (root) => {
    const directory = `${root}/work`;
    mkdirSync(directory);
    await makeImage(directory, recipe, new Random(`image ${name}`));
    const wanted = await contentOf(directory, recipe);
    const hasSnapshot = recipe.snapshots !== undefined;
    const before = hasSnapshot ? await contentOfSnapshot(directory, recipe, "start-0") : undefined;
    const [path = ""] = imageFiles(directory, recipe);
    await body({
      directory,
      recipe,
      path,
      initial: SparseFile.load(path),
      amend: (file, log, faultOf) => amend(new RecordingStorage(path, file, log, 0, faultOf)),
      expectSame: async (label, { mayLeak, snapshot }) => {
        await expectIntact(directory, label, { mayLeak });
        expect((await contentOf(directory, recipe)).equals(wanted), label).toBe(true);
        if (before === undefined || !snapshot) return;
        expect(await isSnapshotIntact(directory, recipe, "start-0", before), label).toBe(true);
      },
    });
  });
}

describe("a crash at any moment of amending leaves the disk as it is", () => {
  it.each(CASES)("%s", async (name, shape, amend) => {
    await withImage(name, shape, amend, async (image) => {
      const log: RecordingLog = { operations: [] };
      image.amend(image.initial.clone(), log);
      const states = new CrashStates([image.initial.clone()], log);
      const random = new Random(`amending ${name}`);
      const last = log.operations.length;
      for (let number = 0; number <= STATES; number++) {
        const isEnd = number === STATES;
        const position = isEnd ? last : random.between(0, last);
        const strategy = random.pick(STRATEGIES);
        const [state] = isEnd ? states.prefix(last) : states.random(position, strategy, random);
        state?.save(image.path);
        const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
        await image.expectSame(label, { mayLeak: !isEnd, snapshot: number % 4 === 0 });
      }
    });
  });
});

describe("whoever is stopped while he amends leaves the disk as it is, and the next writer clears up", () => {
  it.each(byScale(QUICK, CASES))("by a kill: %s", async (name, shape, amend) => {
    await withImage(name, shape, amend, async (image) => {
      const log: RecordingLog = { operations: [] };
      image.amend(image.initial.clone(), log);
      const states = new CrashStates([image.initial.clone()], log);
      const last = log.operations.length;
      const random = new Random(`kills ${name}`);
      for (const position of someCalls({ calls: last, cases: KILLS, random })) {
        const [state] = states.prefix(position);
        state?.save(image.path);
        const label = `the first ${position} of ${last}, seed ${SEED}`;
        await image.expectSame(label, { mayLeak: true, snapshot: false });
        recoverInPlace(image.directory, image.recipe);
        await image.expectSame(`${label}, recovered`, { mayLeak: false, snapshot: true });
      }
    });
  });

  it.each(byScale(QUICK, CASES))("by calls that fail: %s", async (name, shape, amend) => {
    await withImage(name, shape, amend, async (image) => {
      const log: RecordingLog = { operations: [] };
      image.amend(image.initial.clone(), log);
      const calls = log.operations.length;
      let file = image.initial;
      await failEach(
        { calls, cases: FAILING, random: new Random(`failing ${name}`) },
        (faultOf) => {
          file = image.initial.clone();
          image.amend(file, { operations: [] }, faultOf);
        },
        async (label) => {
          file.save(image.path);
          await image.expectSame(label, { mayLeak: true, snapshot: false });
          recoverInPlace(image.directory, image.recipe);
          await image.expectSame(`${label}, recovered`, { mayLeak: false, snapshot: true });
        },
      );
    });
  });
});
