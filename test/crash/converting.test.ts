/**
 * Crashes of the host, kills, and failing calls at any moment of converting with bitmaps, the making of the target included: it is no image yet,
 * or one with nothing but leaks; and bitmaps come last: whoever finds one finds all, and the whole disk.
 */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import {
  bitmapCopies,
  type CopiedBitmap,
  readCopiedBitmaps,
} from "../../src/block/convert/copied-bitmaps.ts";
import { createCopyCursor } from "../../src/block/convert/copy-cursor.ts";
import { DiskCopier } from "../../src/block/convert/disk-copier.ts";
import { closeChain, type OpenChain, openChain } from "../../src/block/open-chain.ts";
import { PLAIN_WRITING } from "../../src/cli/offline-disk.ts";
import { TsimgfsError } from "../../src/errors.ts";
import { ClusterCache } from "../../src/formats/compression/cluster-cache.ts";
import { planQcow2, writeQcow2 } from "../../src/formats/qcow2/create.ts";
import type { Qcow2CreateOptions } from "../../src/formats/qcow2/create-check.ts";
import { LocalFile } from "../../src/storage/local-file.ts";
import { type ReadBitmap, readBitmaps } from "../support/bitmap-reader.ts";
import { recoverInPlace } from "../support/crash-engine.ts";
import {
  contentOf,
  IMAGE_NAME,
  mustQemuImg,
  mustQemuIo,
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

const STATES = byScale(12, 400);
const KILLS = byScale(4, 300);
/** Calls that fail in one way. */
const FAILING = byScale(2, 100);
const MIB = 2 ** 20;
const SIZE = 2 * MIB;
const QCOW2_MAGIC = 0x514649fb;

interface Target {
  readonly recipe: ImageRecipe;
  /** Undefined: it is there before, with a bitmap of its own. */
  readonly created: Qcow2CreateOptions | undefined;
  readonly compressed: boolean;
}

const SHAPE = { format: "qcow2", group: "special", virtualSize: SIZE } as const;
const PLAIN: Qcow2CreateOptions = {
  version: 3,
  virtualSize: SIZE,
  clusterSize: 4096,
  refcountBits: 16,
  extendedL2: false,
  lazyRefcounts: false,
  compressionType: "zlib",
  backingFile: undefined,
  dataFile: undefined,
  preallocation: "off",
};

function newTarget(
  name: string,
  options: Partial<Qcow2CreateOptions>,
  { compressed = false, ...shape }: Partial<ImageRecipe> & { compressed?: boolean } = {},
): Target {
  const created = { ...PLAIN, ...options };
  const { clusterSize } = created;
  return { recipe: { ...SHAPE, ...shape, name, clusterSize }, created, compressed };
}

const TARGETS: readonly Target[] = [
  newTarget("new, 512-byte clusters", { clusterSize: 512 }),
  newTarget("new, compressed", {}, { compressed: true }),
  newTarget("new, sub-clusters", { clusterSize: 16384, extendedL2: true }),
  newTarget(
    "new, with a data file",
    { dataFile: { name: DATA_FILE_NAME, raw: false } },
    { options: { data_file: DATA_FILE_NAME } },
  ),
  {
    recipe: { ...SHAPE, name: "there before", clusterSize: 4096 },
    created: undefined,
    compressed: false,
  },
];

/** With small clusters, so that tables grow, and what is there before. */
const QUICK = TARGETS.filter((_, index) => index % 4 === 0);

/** A source with bitmaps, in which something is marked, and the target, in a directory of its own. */
interface World {
  readonly target: Target;
  /** Of the image. */
  readonly directory: string;
  readonly paths: readonly string[];
  /** What the files of the target are before; of a new one, empty. */
  readonly initial: readonly SparseFile[];
  readonly source: OpenChain;
  readonly bitmaps: readonly CopiedBitmap[];
  /** What QEMU finds in the source. */
  readonly wanted: { readonly disk: SparseFile; readonly bitmaps: readonly ReadBitmap[] };
}

async function makeSource(root: string): Promise<World["wanted"]> {
  const recipe: ImageRecipe = { ...SHAPE, name: "source", clusterSize: 4096 };
  await mustQemuImg(root, ["create", "-q", "-f", "qcow2", IMAGE_NAME, String(SIZE)]);
  await mustQemuImg(root, ["bitmap", "--add", "-g", "512", IMAGE_NAME, "fine"]);
  await mustQemuImg(root, ["bitmap", "--add", "-g", "64k", IMAGE_NAME, "coarse"]);
  const random = new Random("source of conversions");
  const writes = Array.from({ length: 12 }, (_, index) => {
    return `write -q -P ${index + 1} ${512 * random.below(3900)} ${512 * random.between(1, 190)}`;
  });
  await mustQemuIo(root, recipe, [...writes, "write -q -z 1M 128k"]);
  await mustQemuImg(root, ["bitmap", "--disable", IMAGE_NAME, "coarse"]);
  const bitmaps = (await readBitmaps(join(root, IMAGE_NAME))) ?? [];
  return { disk: await contentOf(root, recipe), bitmaps };
}

/** What is there before: other data, and a bitmap. */
async function makeTarget({ recipe }: Target, directory: string): Promise<void> {
  const { clusterSize } = recipe;
  const options = ["-o", `cluster_size=${clusterSize}`];
  await mustQemuImg(directory, [
    ...["create", "-q", "-f", "qcow2", ...options, IMAGE_NAME, String(SIZE)],
  ]);
  await mustQemuImg(directory, ["bitmap", "--add", "-g", "512", IMAGE_NAME, "its own"]);
  await mustQemuIo(directory, recipe, ["write -q -P 99 300k 900k"]);
}

async function withWorld(target: Target, body: (world: World) => Promise<void>): Promise<void> {
  await withMemoryScratch("converting", async (root) => {
    const directory = join(root, "work");
    mkdirSync(directory);
    const wanted = await makeSource(root);
    const isNew = target.created !== undefined;
    if (!isNew) await makeTarget(target, directory);
    const names = target.created?.dataFile ? [IMAGE_NAME, DATA_FILE_NAME] : [IMAGE_NAME];
    const paths = names.map((name) => join(directory, name));
    const initial = paths.map((path) => (isNew ? SparseFile.empty() : SparseFile.load(path)));
    const reading = { format: "qcow2", backingPolicy: "any", forceShare: false } as const;
    const source = openChain(join(root, IMAGE_NAME), reading);
    try {
      const bitmaps = readCopiedBitmaps(source, "refuse", () => undefined);
      await body({ target, directory, paths, initial, source, bitmaps, wanted });
    } finally {
      closeChain(source);
    }
  });
}

/** Converts as the command does, with one thread. Returns what the files contain. */
function convert(world: World, log: RecordingLog, faultOf?: FaultHook): SparseFile[] {
  const { paths, initial, target } = world;
  const files = initial.map((file) => file.clone());
  const storages = paths.map((path, index) => {
    const content = files[index] ?? SparseFile.empty();
    return new RecordingStorage(path, content, log, index, faultOf);
  });
  try {
    const [storage, dataStorage] = storages;
    if (target.created !== undefined && storage !== undefined) {
      Array.from(writeQcow2(planQcow2(target.created, storage.path), { storage, dataStorage }));
    }
    saveAll(world, files);
    copyAll(world, files, log, faultOf);
  } finally {
    saveAll(world, files);
  }
  return files;
}

function saveAll({ paths }: World, files: readonly SparseFile[]): void {
  for (const [index, path] of paths.entries()) files[index]?.save(path);
}

function copyAll(
  { target, paths, source, bitmaps }: World,
  files: readonly SparseFile[],
  log: RecordingLog,
  faultOf: FaultHook | undefined,
): void {
  const chain = openChain(paths[0] ?? "", {
    format: "qcow2",
    backingPolicy: "any",
    forceShare: false,
    writing: { policy: PLAIN_WRITING, threads: 1 },
  });
  try {
    const copier = new DiskCopier(
      {
        sources: [{ layers: source.layers, snapshot: undefined }],
        skip: 0,
        size: SIZE,
        target: { layers: chain.layers, writing: chain.writing },
        cursor: createCopyCursor(),
        manner: {
          sparseSize: 4096,
          compressed: target.compressed,
          targetIsZero: target.created !== undefined,
          topOnly: false,
          salvage: false,
          offload: false,
        },
      },
      0,
      { clusterCache: new ClusterCache() },
      () => undefined,
      (file) => {
        const index = paths.indexOf(file.path);
        const content = files[index];
        if (content === undefined) return new LocalFile(file);
        return new RecordingStorage(file.path, content, log, index, faultOf);
      },
    );
    try {
      while (copier.step());
      copier.target.editBitmaps(bitmapCopies(bitmaps));
    } catch (error) {
      attempt(() => copier.target.close());
      throw error;
    }
    copier.target.close();
  } finally {
    closeChain(chain);
  }
}

/** What fails once more is not what led there. */
function attempt(action: () => void): void {
  try {
    action();
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
  }
}

/** @returns whether the target is an image, and has the bitmaps of the source */
async function expectSound(world: World, label: string): Promise<"none" | "image" | "whole"> {
  const { directory, paths, target, wanted } = world;
  const [path = ""] = paths;
  const head = SparseFile.load(path).bytesAt(0, 4);
  if (head.readUInt32BE(0) !== QCOW2_MAGIC) {
    expect(target.created, label).toBeDefined();
    return "none";
  }
  const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
  expect([0, 3], `${label}: ${check.stdout}${check.stderr}`).toContain(check.status);
  const all = (await readBitmaps(path)) ?? [];
  const found = all.filter(({ name }) => name !== "its own");
  expect(all.length - found.length, label).toBe(target.created === undefined ? 1 : 0);
  if (found.length === 0) {
    await mustQemuImg(directory, ["convert", "-O", "raw", "-f", "qcow2", IMAGE_NAME, "disk"]);
    return "image";
  }
  expect(found, label).toEqual(wanted.bitmaps);
  expect((await contentOf(directory, target.recipe)).equals(wanted.disk), label).toBe(true);
  return "whole";
}

const NAMED = TARGETS.map((target) => [target.recipe.name, target] as const);
const NAMED_QUICK = QUICK.map((target) => [target.recipe.name, target] as const);

describe("a crash at any moment of converting leaves leaks at most, and bitmaps where all is copied", () => {
  it.each(byScale(NAMED_QUICK, NAMED))("%s", async (name, target) => {
    await withWorld(target, async (world) => {
      const log: RecordingLog = { operations: [] };
      convert(world, log);
      expect(await expectSound(world, "the end")).toBe("whole");
      const states = new CrashStates(world.initial, log);
      const last = log.operations.length;
      const random = new Random(`converting ${name}`);
      const found = new Set<string>();
      for (let number = 0; number < STATES; number++) {
        // A half are close to the end, where the bitmaps are made.
        const first = number % 2 === 0 ? Math.max(0, last - 50) : 0;
        const position = random.between(first, last);
        const strategy = random.pick(STRATEGIES);
        saveAll(world, states.random(position, strategy, random));
        const label = `state ${number}: ${strategy} at ${position} of ${last}, seed ${SEED}`;
        found.add(await expectSound(world, label));
      }
      expect(found).toContain("image");
    });
  });
});

describe("whoever is stopped while he converts leaves leaks at most, which the next writer clears up", () => {
  const recover = async (world: World, label: string): Promise<void> => {
    const { directory, target } = world;
    if ((await expectSound(world, label)) === "none") return;
    recoverInPlace(directory, target.recipe);
    const check = await qemuImg(directory, ["check", "-q", "-f", "qcow2", IMAGE_NAME]);
    expect(check.status, `${label}, recovered: ${check.stdout}${check.stderr}`).toBe(0);
    await expectSound(world, `${label}, recovered`);
  };

  it.each(byScale(NAMED_QUICK.slice(0, 1), NAMED))("by a kill: %s", async (name, target) => {
    await withWorld(target, async (world) => {
      const log: RecordingLog = { operations: [] };
      convert(world, log);
      const states = new CrashStates(world.initial, log);
      const calls = log.operations.length;
      const random = new Random(`kills of conversions ${name}`);
      for (const position of someCalls({ calls, cases: KILLS, random })) {
        saveAll(world, states.prefix(position));
        await recover(world, `the first ${position} of ${calls}, seed ${SEED}`);
      }
    });
  });

  it.each(byScale(NAMED_QUICK.slice(1), NAMED))("by calls that fail: %s", async (name, target) => {
    await withWorld(target, async (world) => {
      const log: RecordingLog = { operations: [] };
      convert(world, log);
      const random = new Random(`failing conversions ${name}`);
      await failEach(
        { calls: log.operations.length, cases: FAILING, random },
        (faultOf) => {
          convert(world, { operations: [] }, faultOf);
        },
        (label) => recover(world, label),
      );
    });
  });
});
