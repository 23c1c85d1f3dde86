/**
 * Calls of the host that fail, each in turn, while an image is committed, streamed, or gets another backing file: the error is
 * told, nothing but leaks is left in all images, the disk is what it was, and the same command does the rest.
 */

import { mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import type { AttachFile } from "../../src/block/attach-disk.ts";
import {
  type CommitPlan,
  commitImage,
  type NewBacking,
  type RebasePlan,
  rebaseImage,
  renameBacking,
  streamImage,
} from "../support/command-jobs.ts";
import {
  BACKING_NAME,
  contentOf,
  IMAGE_NAME,
  makeImage,
  qemuImg,
} from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { someCalls, tolerate } from "../support/failing-calls.ts";
import { FAULT_WAYS, FaultyFiles } from "../support/faulty-files.ts";
import { asArray, asRecord } from "../support/json.ts";
import { createImage, type ImageFormat, imageInfo, imageMap, qemuIo } from "../support/qemu.ts";
import { Random, SEED } from "../support/random.ts";
import { SparseFile } from "../support/recording-sparse-file.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

/** Calls of each job that fail in one way. */
const FAILING = byScale(2, 60);
const KIB = 1024;
const MIB = 1024 * KIB;
/** Exit codes of qemu-img check: sound, or leaked clusters. */
const CLEAN = [0];
const CLEAN_OR_LEAKS = [0, 3];
/** So long that it does not fit where the old one is. */
const NEW_NAME = `new-${"x".repeat(200)}`;
const MIDDLE_NAME = "middle";
const KEPT_SNAPSHOT = "kept";

/** The files of a job: the image in a directory, all others above it. */
interface World {
  readonly directory: string;
  readonly recipe: ImageRecipe;
  readonly image: string;
  readonly base: string;
  readonly middle: string;
  readonly newBacking: NewBacking;
}

interface Job {
  readonly name: string;
  readonly recipe: Omit<ImageRecipe, "name" | "group">;
  /** What there is besides the image and its backing file, made by QEMU. */
  prepare?(world: World): Promise<void>;
  /** Files there are, with what is in them. */
  files(world: World): readonly (readonly [path: string, format: ImageFormat])[];
  run(world: World, attachFile: AttachFile): void;
  /** As `run`, for the command. */
  readonly args: (world: World) => readonly string[];
  /** The command refuses to do what is done. */
  readonly isOnce?: boolean;
  /** That nothing is left to be done. */
  expectDone(world: World, label: string): Promise<void>;
  /** What holds at every moment, besides what the disk is. */
  expectAlways?(world: World, label: string): Promise<void>;
}

const V3 = {
  format: "qcow2",
  clusterSize: 4 * KIB,
  virtualSize: 2 * MIB,
  content: "some",
} as const;
const V2 = {
  ...V3,
  clusterSize: 512,
  virtualSize: 512 * KIB,
  options: { compat: "0.10" },
} as const;
const QED = { format: "qed", clusterSize: 4 * KIB, virtualSize: 2 * MIB, content: "some" } as const;

function commitJob(
  name: string,
  recipe: Job["recipe"],
  how: Partial<Job> & { readonly plan?: (world: World) => Partial<CommitPlan> } = {},
): Job {
  const { format, backing } = recipe;
  const { plan, ...more } = how;
  return {
    name: `commit: ${name}`,
    recipe,
    files: ({ image, base }) => [
      [image, format],
      [base, backing?.format ?? "raw"],
    ],
    run: (world, attachFile) => {
      commitImage({ path: world.image, format, ...plan?.(world) }, attachFile);
    },
    args: ({ image }) => ["commit", "-q", "-f", format, image],
    expectDone: async ({ image, base }, label) => {
      const compare = ["compare", "-q", "-f", format, "-F", backing?.format ?? "raw", image, base];
      await run("qemu-img", compare);
      if (format !== "qcow2" || plan !== undefined) return;
      const own = asArray(await imageMap([image])).filter((extent) => {
        const { depth, present } = asRecord(extent);
        return depth === 0 && present === true;
      });
      expect(own, `${label}: the image is empty`).toEqual([]);
    },
    ...more,
  };
}

/** Commits past an image between, and leaves the image as it is. */
const PAST_ANOTHER = commitJob(
  "past an image between",
  { ...V3, backing: { format: "qcow2", size: MIB } },
  {
    plan: ({ base }) => ({ base, isKept: true }),
    prepare: async ({ image, base, middle }) => {
      await createImage(middle, "qcow2", {
        size: 1536 * KIB,
        backing: { file: base, format: "qcow2" },
      });
      await qemuIo(middle, "qcow2", ["write -q -P 77 300k 500k", "write -q -z 1M 100k"]);
      await run("qemu-img", ["rebase", "-u", "-b", middle, "-F", "qcow2", image]);
    },
    files: ({ image, base, middle }) => [
      [image, "qcow2"],
      [base, "qcow2"],
      [middle, "qcow2"],
    ],
    args: ({ image, base }) => ["commit", "-q", "-b", base, image],
  },
);

const SNAPSHOT_BELOW = commitJob(
  "into qcow2 with a snapshot, which grows",
  { ...V2, backing: { format: "qcow2", size: 300 * KIB } },
  {
    prepare: async ({ base }) => {
      await run("qemu-img", ["snapshot", "-c", KEPT_SNAPSHOT, base]);
      await run("qemu-img", ["convert", "-O", "raw", base, `${base}.raw`]);
    },
    expectAlways: async ({ base }) => {
      // QEMU gives it the size of the disk of today: what is new is zeros.
      const args = ["-l", `snapshot.name=${KEPT_SNAPSHOT}`, "-O", "raw", base, `${base}.now`];
      await run("qemu-img", ["convert", ...args]);
      await run("qemu-img", [
        "compare",
        "-q",
        "-f",
        "raw",
        "-F",
        "raw",
        `${base}.raw`,
        `${base}.now`,
      ]);
    },
  },
);

async function makeNewBacking({ base, newBacking, recipe }: World): Promise<void> {
  const format = recipe.backing?.format ?? "raw";
  await run("qemu-img", ["convert", "-f", format, "-O", "raw", base, newBacking.path]);
  // What it has differently: noise, zeros, and what compresses.
  await qemuIo(newBacking.path, "raw", ["write -q -P 3 100k 60k", "write -q -z 170k 50k"]);
}

function rebaseJob(
  name: string,
  recipe: Job["recipe"],
  how: Partial<RebasePlan> & {
    readonly args?: readonly string[];
    readonly isUnsafe?: boolean;
  } = {},
): Job {
  const { format, backing } = recipe;
  const { args = [], isUnsafe = false, ...plan } = how;
  const hasNew = !("backing" in how);
  return {
    name: `rebase: ${name}`,
    recipe,
    prepare: async (world) => {
      await qemuIo(world.base, backing?.format ?? "raw", ["write -q -P 8 120k 90k"]);
      await makeNewBacking(world);
    },
    files: ({ image, base, newBacking }) => [
      [image, format],
      [base, backing?.format ?? "raw"],
      [newBacking.path, newBacking.format],
    ],
    run: ({ image, newBacking }, attachFile) => {
      const whole = { path: image, format, backing: newBacking, ...plan };
      if (isUnsafe) renameBacking(whole, attachFile);
      else rebaseImage(whole, attachFile);
    },
    args: ({ image, newBacking }) => {
      const to = hasNew ? ["-b", newBacking.name, "-F", newBacking.format] : ["-b", ""];
      return ["rebase", "-f", format, ...args, ...to, image];
    },
    expectDone: async ({ image, newBacking }, label) => {
      expect(await backingNameOf(image), label).toBe(hasNew ? newBacking.name : undefined);
    },
  };
}

/** As rebasing onto nothing. */
function streamJob(recipe: Job["recipe"]): Job {
  return {
    ...rebaseJob(recipe.format, recipe, { backing: undefined }),
    name: `stream: ${recipe.format}`,
    run: ({ image }, attachFile) => {
      streamImage({ path: image, format: recipe.format, backing: undefined }, attachFile);
    },
    args: ({ image }) => ["stream", "-f", recipe.format, image],
    isOnce: true,
  };
}

const JOBS: readonly Job[] = [
  commitJob("into raw, which grows", { ...V3, backing: { format: "raw", size: MIB + 3 * KIB } }),
  SNAPSHOT_BELOW,
  commitJob("into QED", { ...QED, backing: { format: "qed", size: MIB } }),
  PAST_ANOTHER,
  rebaseJob("onto another file", { ...V3, backing: { format: "raw", size: MIB + 3 * KIB } }),
  rebaseJob(
    "onto another file, compressed",
    { ...V3, backing: { format: "qcow2", size: MIB } },
    { compress: true, args: ["-c"] },
  ),
  rebaseJob(
    "onto nothing, version 2",
    { ...V2, backing: { format: "raw", size: 300 * KIB } },
    { backing: undefined },
  ),
  rebaseJob("QED onto another file", { ...QED, backing: { format: "raw", size: MIB } }),
  rebaseJob(
    "the name only",
    { ...V3, clusterSize: 512, backing: { format: "raw", size: MIB } },
    { isUnsafe: true, args: ["-u"] },
  ),
  rebaseJob(
    "the name only, QED",
    { ...QED, backing: { format: "raw", size: MIB } },
    { isUnsafe: true, args: ["-u"] },
  ),
  streamJob({ ...V3, backing: { format: "raw", size: MIB + 3 * KIB } }),
  streamJob({ ...QED, backing: { format: "raw", size: MIB } }),
];

async function backingNameOf(image: string): Promise<unknown> {
  return asRecord(await imageInfo([image]))["backing-filename"];
}

async function makeWorld(root: string, { name, recipe, prepare }: Job): Promise<World> {
  const directory = join(root, "work");
  mkdirSync(directory);
  const whole: ImageRecipe = { ...recipe, name, group: "special" };
  await makeImage(directory, whole, new Random(`image ${name}`));
  const world: World = {
    directory,
    recipe: whole,
    image: join(directory, IMAGE_NAME),
    base: join(root, BACKING_NAME),
    middle: join(root, MIDDLE_NAME),
    newBacking: { path: join(root, NEW_NAME), format: "raw", name: `../${NEW_NAME}` },
  };
  await prepare?.(world);
  return world;
}

/** What the disk is, by the name of the backing file. */
type Disks = ReadonlyMap<unknown, SparseFile>;

async function diskOf({ directory, recipe, image }: World): Promise<[unknown, SparseFile]> {
  return [await backingNameOf(image), await contentOf(directory, recipe)];
}

/** That no image has more than leaks, and that the disk is one that it may be. */
async function expectState(
  world: World,
  job: Job,
  disks: Disks,
  { statuses, label }: { readonly statuses: readonly number[]; readonly label: string },
): Promise<void> {
  for (const [path, format] of job.files(world)) {
    if (format === "raw") continue;
    const check = await qemuImg(world.directory, ["check", "-q", "-f", format, path]);
    const text = `${label}: ${basename(path)}: ${check.stdout}${check.stderr}`;
    expect(statuses, text.slice(0, 1000)).toContain(check.status);
  }
  const [name, disk] = await diskOf(world);
  const wanted = disks.get(name);
  expect(wanted, `${label}: backing file ${name}`).toBeDefined();
  expect(wanted?.equals(disk), `${label}: the disk`).toBe(true);
  await job.expectAlways?.(world, label);
}

/** Lets one call, or all from one on, fail in each way: of those that change something, and of those that read. */
function* faultsOf(
  { name }: Job,
  { calls, reads }: FaultyFiles,
): Generator<{ readonly files: FaultyFiles; readonly label: string }> {
  const random = new Random(`failing ${name}`);
  const [first, ...others] = FAULT_WAYS;
  if (first === undefined) throw new RangeError("no ways to fail");
  for (const way of byScale([random.pick([first, ...others])], FAULT_WAYS)) {
    for (const index of someCalls({ calls: calls.length, cases: FAILING, random })) {
      const { kind = "call", path = "" } = calls[index] ?? {};
      const label = `${way.name}: ${kind} ${index} of ${calls.length}, of ${basename(path)}`;
      yield { files: new FaultyFiles(way.faults(index)), label };
    }
  }
  for (const index of someCalls({ calls: reads.length, cases: FAILING / 2, random })) {
    const files = new FaultyFiles();
    files.readFaults = () => (files.reads.length - 1 === index ? { code: "EIO" } : "works");
    yield {
      files,
      label: `read ${index} of ${reads.length}, of ${basename(reads[index]?.path ?? "")}`,
    };
  }
}

describe("a call that fails leaves nothing but leaks, the disk, and a job that can be done again", () => {
  it.each(JOBS.map((job) => [job.name, job] as const))("%s", async (_, job) => {
    await withMemoryScratch("failing-jobs", async (root) => {
      const world = await makeWorld(root, job);
      const initial = job.files(world).map(([path]) => [path, SparseFile.load(path)] as const);
      const before = await diskOf(world);
      const undisturbed = new FaultyFiles();
      job.run(world, undisturbed.attach);
      const disks: Disks = new Map([before, await diskOf(world)]);
      await job.expectDone(world, "undisturbed");
      for (const { files, label: fault } of faultsOf(job, undisturbed)) {
        const label = `${fault}, seed ${SEED}`;
        for (const [path, content] of initial) content.save(path);
        const error = tolerate(() => job.run(world, files.attach));
        if (error === undefined) await job.expectDone(world, label);
        else expect(String(error), label).toMatch(/\/(image|backing|middle|new-x+): \S/);
        await expectState(world, job, disks, { statuses: CLEAN_OR_LEAKS, label });
        const isDone = job.isOnce === true && (await backingNameOf(world.image)) === undefined;
        await tsimgfs(isDone ? ["check", "-q", "-r", "leaks", world.image] : job.args(world));
        await job.expectDone(world, `${label}, again`);
        await expectState(world, job, disks, { statuses: CLEAN, label: `${label}, again` });
      }
    });
  });
});
