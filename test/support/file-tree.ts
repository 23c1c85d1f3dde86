// A tree of files of many kinds and sizes, and its comparison with what a mounted file system shows.

import { link, mkdir, open, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import type { Random } from "./random.ts";
import { attempt, run } from "./run.ts";

async function writeSparse(path: string, random: Random): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.truncate(5_000_000);
    await file.write(random.bytes(1000), 0, 1000, 3_000_001);
  } finally {
    await file.close();
  }
}

/** Makes a tree below an existing directory. */
export async function makeFileTree(directory: string, random: Random): Promise<void> {
  for (const name of ["deep", "deep/er", "deep/er/est", "many", "empty"]) {
    await mkdir(join(directory, name));
  }
  for (const size of [0, 1, 511, 4096, 4097, 100_000, 3_000_000]) {
    await writeFile(join(directory, `noise-${size}`), random.bytes(size));
    await writeFile(join(directory, "deep/er/est", `text-${size}`), random.text(size));
  }
  for (let index = 0; index < 300; index++) {
    await writeFile(join(directory, "many", `file-${index}`), random.text(random.below(3000)));
  }
  await writeSparse(join(directory, "sparse"), random);
  await symlink("../noise-4097", join(directory, "deep/link"));
  await link(join(directory, "noise-4096"), join(directory, "deep/same"));
}

/** Metadata of a tree that every file system keeps: kind, mode, owner, size of files, target of links. */
async function listing(directory: string): Promise<string[]> {
  const format = "%P %y %m %U %G %l";
  const { stdout } = await run("find", [
    directory,
    ...["-mindepth", "1", "-name", "lost+found", "-prune", "-o", "-mindepth", "1"],
    ...["(", "-type", "f", "-printf", `${format} %s %n\\n`, "-o", "-printf", `${format}\\n`, ")"],
  ]);
  // A line may end with a space: only the line ends are taken off.
  return stdout.replace(/\n$/, "").split("\n").sort();
}

/** Expects two trees to have the same names, metadata and contents. */
export async function expectSameTree(actual: string, wanted: string): Promise<void> {
  expect(await listing(actual)).toEqual(await listing(wanted));
  const args = ["-r", "--no-dereference", "--brief", "--exclude=lost+found", actual, wanted];
  const { status, stdout, stderr } = await attempt("diff", args);
  expect({ status, output: stdout + stderr }).toEqual({ status: 0, output: "" });
}
