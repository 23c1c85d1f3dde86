// Compares a device with a raw file through each way of reading: dd, random preads, mmap, O_DIRECT.

import { stat } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import type { Random } from "./random.ts";
import { attempt, run } from "./run.ts";

interface Window {
  readonly offset: number;
  readonly size: number;
}

/** Drops the page cache of a file, so that the next read reaches the daemon. */
async function dropCache(file: string): Promise<void> {
  await run("dd", [`if=${file}`, "iflag=nocache", "count=0", "status=none"]);
}

/** Windows anywhere and around multiples of `unit`, where clusters meet. */
export function randomWindows(
  random: Random,
  fileSize: number,
  unit: number,
  count: number,
): Window[] {
  const windows: Window[] = [];
  for (let index = 0; index < count && fileSize > 0; index++) {
    const units = Math.floor(fileSize / unit);
    const wanted =
      random.below(2) === 0
        ? random.below(fileSize)
        : random.between(0, units) * unit + random.pick([0, -1, -512, -4096, 1]);
    const offset = Math.min(Math.max(0, wanted), fileSize - 1);
    const size = random.pick([1, 2, 511, 512, 4096, 5000, 16384]);
    windows.push({ offset, size: Math.min(size, fileSize - offset) });
  }
  return windows;
}

/** What xfs_io prints of windows of a file, as hexadecimal lines. */
async function dump(
  file: string,
  windows: readonly Window[],
  how: "pread" | "mmap",
): Promise<string[]> {
  const commands = windows.map(({ offset, size }) =>
    how === "mmap" ? `mread -v ${offset} ${size}` : `pread -q -v -b ${size} ${offset} ${size}`,
  );
  if (how === "mmap") {
    commands.unshift(`mmap -r 0 ${(await stat(file)).size}`);
  }
  const args = ["-r", ...commands.flatMap((command) => ["-c", command]), file];
  const { stdout, stderr } = await run("xfs_io", args);
  return [...stdout.split("\n"), ...stderr.split("\n")];
}

/** Expects the same output of both files; a failure shows the first differing lines only. */
async function expectSameDump(
  device: string,
  expected: string,
  windows: readonly Window[],
  how: "pread" | "mmap",
): Promise<void> {
  const [actual, wanted] = await Promise.all([
    dump(device, windows, how),
    dump(expected, windows, how),
  ]);
  const at = wanted.findIndex((line, index) => actual[index] !== line);
  const from = at < 0 ? Math.max(0, wanted.length - 1) : at;
  expect(actual.slice(from, from + 3), `${device} through ${how}`).toEqual(
    wanted.slice(from, from + 3),
  );
}

/** Expects that two files have the same bytes, by cmp(1). */
export async function expectSameBytes(
  actual: string,
  expected: string,
  how: string,
): Promise<void> {
  const { stdout, stderr, status } = await attempt("cmp", [actual, expected]);
  expect({ how, status, output: stdout + stderr }).toEqual({ how, status: 0, output: "" });
}

async function expectSameThroughDd(
  device: string,
  expected: string,
  ddArgs: readonly string[],
  scratch: string,
): Promise<void> {
  const copy = join(scratch, "copy");
  await run("dd", [`if=${device}`, `of=${copy}`, "status=none", ...ddArgs]);
  await expectSameBytes(copy, expected, `${device} through dd ${ddArgs.join(" ")}`);
}

/** Expects O_DIRECT reads at offsets and of sizes that no cluster or sector knows. */
async function expectSameOddDirectReads(
  device: string,
  expected: string,
  windows: readonly Window[],
  scratch: string,
): Promise<void> {
  for (const [index, { offset, size }] of windows.entries()) {
    const pieces = [join(scratch, `piece-${index}-actual`), join(scratch, `piece-${index}-wanted`)];
    const flags = "skip_bytes,count_bytes";
    const where = [`bs=${size}`, `skip=${offset}`, `count=${size}`, "status=none"];
    const [actual = "", wanted = ""] = pieces;
    await run("dd", [`if=${device}`, `of=${actual}`, `iflag=${flags},direct`, ...where]);
    await run("dd", [`if=${expected}`, `of=${wanted}`, `iflag=${flags}`, ...where]);
    await expectSameBytes(actual, wanted, `${device} O_DIRECT ${offset}+${size}`);
  }
}

/**
 * Expects a device to have the size and the bytes of a raw file, through every way of reading.
 *
 * @param unit cluster size, around whose multiples to read
 * @param scratch directory for copies
 */
export async function expectSameContent(
  device: string,
  expected: string,
  unit: number,
  random: Random,
  scratch: string,
): Promise<void> {
  const { size } = await stat(expected);
  const { stdout } = await run("stat", ["--format=%s", device]);
  expect(Number(stdout), `size of ${device}`).toBe(size);
  const blockSize = random.pick([4096, 65536, 100_000, 1_048_576]);
  await expectSameThroughDd(device, expected, ["iflag=direct", `bs=${blockSize}`], scratch);
  if (size > 0) {
    const windows = randomWindows(random, size, unit, 40);
    await expectSameOddDirectReads(device, expected, windows.slice(0, 4), scratch);
    await dropCache(device);
    await expectSameDump(device, expected, windows, "pread");
    await dropCache(device);
    await expectSameDump(device, expected, randomWindows(random, size, unit, 30), "mmap");
    await dropCache(device);
  }
  await expectSameThroughDd(device, expected, ["bs=1M"], scratch);
}
