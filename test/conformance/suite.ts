// The checks that every image of the conformance matrix goes through, against qemu-img.

import { rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes, expectSameContent } from "../support/device-content.ts";
import { parseMap, zeroRuns } from "../support/disk-map.ts";
import { asRecord, missingOrDifferent, numberIn } from "../support/json.ts";
import { type Mount, startMount } from "../support/mounted.ts";
import { convertToRaw, type ImageFormat, imageInfo, imageMap } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { makePatterns, type Patterns } from "../support/scribble.ts";
import { attemptTsimgfs, tsimgfs } from "../support/tsimgfs.ts";

/** What a recipe may use to make its image. */
export interface Kitchen {
  /** An existing directory of this image alone. */
  readonly directory: string;
  /** Where the image belongs. */
  readonly path: string;
  readonly random: Random;
  readonly patterns: Patterns;
}

/** An image of the matrix: how to make it, and what it contains besides the disk. */
export interface Recipe {
  /** Unique in its suite; the image is NAME.FORMAT. */
  readonly name: string;
  readonly format: ImageFormat;
  readonly make: (kitchen: Kitchen) => Promise<void>;
  /** Names of internal snapshots to compare as well. */
  readonly snapshots?: readonly string[];
}

interface Dish {
  readonly path: string;
  readonly directory: string;
  readonly random: Random;
}

async function cook(recipe: Recipe, root: string, patterns: Patterns): Promise<Dish> {
  const directory = await makeScratch(`${root.split("/").at(-1)}-${recipe.name}`);
  const path = join(directory, `${recipe.name}.${recipe.format}`);
  const random = new Random(recipe.name);
  await recipe.make({ directory, path, random, patterns });
  return { path, directory, random };
}

async function clusterSizeOf(path: string, format: ImageFormat): Promise<number> {
  const info = asRecord(await imageInfo(["-f", format, path]));
  return info["cluster-size"] === undefined ? 65536 : numberIn(info, "cluster-size");
}

async function expectSameInfo(path: string, flags: readonly string[]): Promise<void> {
  // Writeback changes the allocated size: ask qemu-img before and after, until it says the same.
  for (let tries = 0; ; tries++) {
    const before = await imageInfo([...flags, path]);
    const { stdout } = await tsimgfs(["info", "--output", "json", ...flags, path]);
    const after = await imageInfo([...flags, path]);
    if (JSON.stringify(before) === JSON.stringify(after) || tries === 5) {
      expect(missingOrDifferent(JSON.parse(stdout), after)).toEqual([]);
      return;
    }
  }
}

/** The lines of qemu-img's human form must be there in this order; newer versions print more lines. */
async function expectSameHumanInfo(path: string): Promise<void> {
  const wanted = await attempt("qemu-img", ["info", path]);
  const actual = await tsimgfs(["info", path]);
  const lines = actual.stdout.split("\n");
  let from = 0;
  for (const line of wanted.stdout.split("\n").filter((text) => !text.startsWith("disk size"))) {
    const at = lines.indexOf(line, from);
    expect(at, `line ${JSON.stringify(line)} in\n${actual.stdout}`).toBeGreaterThanOrEqual(from);
    from = at + 1;
  }
}

async function expectSameHumanMap(path: string, formatArgs: readonly string[]): Promise<void> {
  const wanted = await attempt("qemu-img", ["map", ...qemuFormat(formatArgs), path]);
  const actual = await attemptTsimgfs(["map", ...formatArgs, path]);
  expect({ status: actual.status, stdout: actual.stdout }).toEqual({
    status: wanted.status,
    stdout: wanted.stdout,
  });
}

function qemuFormat(formatArgs: readonly string[]): string[] {
  return formatArgs.map((arg) => (arg === "--format" ? "-f" : arg));
}

async function expectSameMap(path: string, formatArgs: readonly string[]): Promise<void> {
  const wanted = await imageMap([...qemuFormat(formatArgs), path]);
  const { stdout } = await tsimgfs(["map", "--output", "json", ...formatArgs, path]);
  expect(parseMap(JSON.parse(stdout))).toEqual(parseMap(wanted));
}

async function expectSameHoles(path: string, format: ImageFormat, device: string): Promise<void> {
  const wanted = await imageMap(["-f", format, path]);
  const actual = await imageMap(["-f", "raw", device]);
  expect(zeroRuns(actual)).toEqual(zeroRuns(wanted));
}

/**
 * Writes the disk of a snapshot to a raw file, by going back to it in a copy of the image.
 * `qemu-img convert -l` would cut or fill the disk to the size that it has now.
 */
async function convertSnapshot(dish: Dish, snapshot: string, out: string): Promise<void> {
  const copy = join(dish.directory, "reverted.qcow2");
  await run("cp", ["--sparse=always", dish.path, copy]);
  await run("qemu-img", ["snapshot", "-q", "-a", snapshot, copy]);
  await convertToRaw(copy, "qcow2", out);
  const current = `${out}-current-size`;
  await convertToRaw(dish.path, "qcow2", current, ["-l", `snapshot.name=${snapshot}`]);
  if ((await stat(current)).size === (await stat(out)).size) {
    await expectSameBytes(current, out, "the two ways of QEMU to read a snapshot");
  }
}

/** Describes a suite: all images are made and mounted together, then each is compared. */
export function describeConformance(title: string, recipes: readonly Recipe[]): void {
  describe(title, () => {
    const dishes = new Map<string, Dish>();
    let mount: Mount | undefined;
    let root: string | undefined;

    beforeAll(async () => {
      root = await makeScratch("suite");
      const patterns = await makePatterns(root, new Random(title));
      for (const recipe of recipes) {
        dishes.set(recipe.name, await cook(recipe, root, patterns));
      }
      const images = [...dishes.values()].map(({ path }) => path);
      mount = await startMount(images, { args: ["-r"] });
    });

    afterAll(async () => {
      await mount?.stop();
      for (const directory of [root, ...[...dishes.values()].map((dish) => dish.directory)]) {
        if (directory !== undefined) {
          await rm(directory, { recursive: true, force: true });
        }
      }
    });

    function served(recipe: Recipe): { dish: Dish; mount: Mount } {
      const dish = dishes.get(recipe.name);
      if (dish === undefined || mount === undefined) {
        throw new Error(`${recipe.name} is not mounted`);
      }
      return { dish, mount };
    }

    describe.each(recipes)("$name", (recipe) => {
      const { format } = recipe;
      const formatArgs = format === "raw" ? ["--format", "raw"] : [];

      it("has the bytes of qemu-img convert through dd, preads, mmap and O_DIRECT", async () => {
        const { dish, mount: active } = served(recipe);
        const unit = await clusterSizeOf(dish.path, format);
        const expected = join(dish.directory, "expected");
        await convertToRaw(dish.path, format, expected);
        const device = active.device(dish.path);
        await expectSameContent(device, expected, unit, dish.random, dish.directory);
      });

      it.each(recipe.snapshots ?? [])("has the bytes of its snapshot %s", async (snapshot) => {
        const { dish, mount: active } = served(recipe);
        const unit = await clusterSizeOf(dish.path, format);
        const expected = join(dish.directory, `expected-${snapshot}`);
        await convertSnapshot(dish, snapshot, expected);
        const device = active.snapshot(dish.path, snapshot);
        await expectSameContent(device, expected, unit, dish.random, dish.directory);
      });

      it("has holes where qemu-img map says zero", async () => {
        const { dish, mount: active } = served(recipe);
        await expectSameHoles(dish.path, format, active.device(dish.path));
      });

      it("has the map of qemu-img as JSON", async () => {
        await expectSameMap(served(recipe).dish.path, formatArgs);
      });

      it("has the map of qemu-img for people", async () => {
        await expectSameHumanMap(served(recipe).dish.path, formatArgs);
      });

      it("has the info of qemu-img as JSON, alone and with its chain", async () => {
        const { dish } = served(recipe);
        await expectSameInfo(dish.path, []);
        await expectSameInfo(dish.path, ["--backing-chain"]);
      });

      it("has the info of qemu-img for people", async () => {
        await expectSameHumanInfo(served(recipe).dish.path);
      });
    });
  });
}
