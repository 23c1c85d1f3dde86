/** Makes the images that crash and model tests start from, by qemu-img, and works on them with QEMU. */

import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { crashAfter } from "./crash-after.ts";
import { DATA_FILE_NAME, hasDataFile, type ImageRecipe } from "./crash-recipes.ts";
import { createEncryptedImage, encryptedArguments } from "./encrypted-image.ts";
import type { ImageFormat } from "./qemu.ts";
import type { Random } from "./random.ts";
import { SparseFile } from "./recording-sparse-file.ts";
import { attempt, type RunResult, run } from "./run.ts";
import { makePatterns, scribbleCommands } from "./scribble.ts";

/** Every image has this name, in a directory of its own; its backing file lies one directory above. */
export const IMAGE_NAME = "image";
export const BACKING_NAME = "backing";

/** Runs of zeros in backing files, bytes. */
const BACKING_PIECE = 20_000;

/** The files of an image in its directory: the image, and its data file if it has one. */
export function imageFiles(directory: string, recipe: ImageRecipe): string[] {
  const names = hasDataFile(recipe) ? [IMAGE_NAME, DATA_FILE_NAME] : [IMAGE_NAME];
  return names.map((name) => join(directory, name));
}

/** How QEMU's programs are told of an image of a recipe. */
export function sourceArguments({ format, encryption }: ImageRecipe, name = IMAGE_NAME): string[] {
  return encryption === undefined ? ["-f", format, name] : encryptedArguments(name);
}

/** Runs qemu-img in the image's directory: QEMU 7.2 takes the name of a data file relative to where it runs. */
export function qemuImg(directory: string, args: readonly string[]): Promise<RunResult> {
  return attempt("qemu-img", args, { cwd: directory });
}

/** As `qemuImg`, for what must succeed. */
export function mustQemuImg(directory: string, args: readonly string[]): Promise<RunResult> {
  return run("qemu-img", args, { cwd: directory });
}

/** Runs commands of qemu-io on the image in a directory. */
export async function mustQemuIo(
  directory: string,
  recipe: ImageRecipe,
  commands: readonly string[],
): Promise<void> {
  const args = commands.flatMap((command) => ["-c", command]);
  const { stdout, stderr } = await run("qemu-io", [...args, ...sourceArguments(recipe)], {
    cwd: directory,
  });
  if (/failed|rror|not found/.test(stdout + stderr)) throw new Error(`qemu-io: ${stdout}${stderr}`);
}

/** Makes the image of a recipe in `directory`, and its backing file in the directory above. */
export async function makeImage(
  directory: string,
  recipe: ImageRecipe,
  random: Random,
): Promise<void> {
  const { format, virtualSize, clusterSize, backing } = recipe;
  if (backing !== undefined) await makeBacking(join(directory, ".."), backing, random);
  const options = Object.entries({
    ...(format === "raw" ? {} : { cluster_size: clusterSize }),
    ...recipe.options,
  });
  const more = [
    ...(backing === undefined ? [] : ["-b", `../${BACKING_NAME}`, "-F", backing.format]),
    ...options.flatMap(([name, value]) => ["-o", `${name}=${value}`]),
  ];
  if (recipe.encryption === undefined) {
    const create = ["create", "-q", "-f", format, ...more, IMAGE_NAME, String(virtualSize)];
    await mustQemuImg(directory, create);
  } else {
    const encryption = [...recipe.encryption, "encrypt.key-secret=key"];
    const cwd = { cwd: directory };
    await createEncryptedImage(IMAGE_NAME, encryption, String(virtualSize), more, cwd);
  }
  if (recipe.prefill !== undefined) {
    await mustQemuIo(directory, recipe, [`write -q -P 7 0 ${recipe.prefill}`]);
  }
  await fill(directory, recipe, random);
  for (let index = 0; index < (recipe.snapshots ?? 0); index++) {
    await takeSnapshot(directory, recipe, `start-${index}`);
    const offset = random.below(virtualSize / clusterSize / 2) * clusterSize;
    const length = Math.min(5 * clusterSize, virtualSize - offset);
    await mustQemuIo(directory, recipe, [`write -q -P ${index + 1} ${offset} ${length}`]);
  }
  if (recipe.dirty === true) {
    const middle = Math.floor(virtualSize / 2 / clusterSize) * clusterSize;
    const commands = [`write -q -P 9 ${middle} ${8 * clusterSize}`, "flush"];
    await crashAfter(join(directory, IMAGE_NAME), format === "qed" ? "qed" : "qcow2", commands);
  }
}

export async function takeSnapshot(
  directory: string,
  recipe: ImageRecipe,
  name: string,
): Promise<void> {
  const { encryption } = recipe;
  const source = encryption === undefined ? [IMAGE_NAME] : sourceArguments(recipe);
  await mustQemuImg(directory, ["snapshot", "-q", "-c", name, ...source]);
}

async function fill(directory: string, recipe: ImageRecipe, random: Random): Promise<void> {
  const { format, content = "none", virtualSize: size, clusterSize } = recipe;
  if (content === "none") return;
  const patterns = await makePatterns(directory, random);
  // Where QEMU has no zero clusters, it cannot discard over a backing file.
  const plain = format !== "qcow2" || recipe.options?.["compat"] === "0.10";
  const commands = scribbleCommands(
    random,
    {
      ...{ size, clusterSize, count: 16 },
      kinds: plain ? ["write", "zero"] : ["write", "zero", "write", "discard", "unmap"],
      compressedClusters: content === "compressed" ? Math.floor(size / clusterSize / 2) : 0,
    },
    patterns,
  );
  await mustQemuIo(directory, recipe, commands);
  for (const file of [...patterns.text, ...patterns.noise]) rmSync(file);
}

async function makeBacking(
  directory: string,
  { format, size }: { readonly format: ImageFormat; readonly size: number },
  random: Random,
): Promise<void> {
  const path = join(directory, BACKING_NAME);
  // Every third piece of it is zeros.
  const bytes = random.bytes(size);
  for (let offset = 0; offset < size; offset += 3 * BACKING_PIECE) {
    bytes.fill(0, offset, Math.min(offset + BACKING_PIECE, size));
  }
  if (format === "raw") {
    writeFileSync(path, bytes);
    return;
  }
  const source = `${path}.source`;
  writeFileSync(source, bytes);
  const create = ["-O", format, "-o", "cluster_size=4096", source, BACKING_NAME];
  await mustQemuImg(directory, ["convert", "-f", "raw", ...create]);
  rmSync(source);
}

/**
 * What QEMU does between our sessions: it writes, and takes a snapshot where that can be.
 *
 * @param afterSnapshot called as long as the disk is what the snapshot has
 */
export async function workByQemu(
  directory: string,
  recipe: ImageRecipe,
  { number, virtualSize }: { number: number; virtualSize: number },
  random: Random,
  afterSnapshot: (name: string) => Promise<void>,
): Promise<void> {
  const { format, clusterSize, options, backing, growth } = recipe;
  const isV2 = options?.["compat"] === "0.10";
  const [first, second, third, fourth] = Array.from({ length: 4 }, () => {
    const offset = random.below(Math.ceil(virtualSize / clusterSize)) * clusterSize;
    return `${offset} ${Math.min(virtualSize - offset, clusterSize * random.between(1, 9))}`;
  });
  const canDiscard = !isV2 || backing === undefined;
  await mustQemuIo(directory, recipe, [
    `write -q -P ${number + 100} ${first}`,
    `write -q -z ${second}`,
    canDiscard ? `discard -q ${third}` : `write -q -P ${number + 50} ${third}`,
  ]);
  if (format !== "qcow2" || hasDataFile(recipe) || options?.["refcount_bits"] === 1) return;
  // Of such an image the size could not change any more.
  if (isV2 && growth !== undefined) return;
  const name = `between-${number}`;
  await takeSnapshot(directory, recipe, name);
  await afterSnapshot(name);
  await mustQemuIo(directory, recipe, [`write -q -P ${number + 200} ${fourth}`]);
}

/** What the disk of the image in a directory contains, by qemu-img. */
export async function contentOf(
  directory: string,
  recipe: ImageRecipe,
  more: readonly string[] = [],
): Promise<SparseFile> {
  await mustQemuImg(directory, [
    ...["convert", ...more, "-O", "raw"],
    ...[...sourceArguments(recipe), "disk"],
  ]);
  return SparseFile.load(join(directory, "disk"));
}

/** What an internal snapshot contains; QEMU 7.2 gives it the size of the disk of today. */
export function contentOfSnapshot(
  directory: string,
  recipe: ImageRecipe,
  name: string,
): Promise<SparseFile> {
  return contentOf(directory, recipe, ["-l", `snapshot.name=${name}`]);
}

/** Whether an internal snapshot contains what it did, as far as it can be seen. */
export async function isSnapshotIntact(
  directory: string,
  recipe: ImageRecipe,
  name: string,
  wanted: SparseFile,
): Promise<boolean> {
  const now = await contentOfSnapshot(directory, recipe, name);
  const before = wanted.clone();
  const length = Math.min(now.length, before.length);
  now.setLength(length);
  before.setLength(length);
  return now.equals(before);
}
