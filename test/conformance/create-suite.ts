// Makes the same new image with qemu-img and with tsimgfs, each in a directory of its own, and compares the two.

import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { type MapEntry, parseMap } from "../support/disk-map.ts";
import { asRecord, missingOrDifferent } from "../support/json.ts";
import { qemuIo } from "../support/qemu.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, RunError, type RunResult, run, runJson } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf } from "../support/tsimgfs.ts";

const IMAGE = "new.qcow2";

/** One command line of create; files are named relative to the working directory. */
export interface CreateCase {
  /** As text; undefined: as the backing file. */
  readonly size: string | undefined;
  readonly options: Readonly<Record<string, string>>;
  readonly backing?: "raw" | "qcow2" | undefined;
}

export function titleOf({ size, options, backing }: CreateCase): string {
  const list = Object.entries(options).map(([name, value]) => `${name}=${value}`);
  return [
    list.join(",") || "no options",
    ...(backing === undefined ? [] : [`over ${backing}`]),
    ...(size === undefined ? [] : [`size ${size}`]),
  ].join(", ");
}

function argumentsOf({ size, options, backing }: CreateCase): string[] {
  const list = Object.entries(options).map(([name, value]) => `${name}=${value}`);
  return [
    ...["create", "-f", "qcow2"],
    ...(backing === undefined ? [] : ["-b", `base.${backing}`, "-F", backing]),
    ...(list.length === 0 ? [] : ["-o", list.join(",")]),
    IMAGE,
    ...(size === undefined ? [] : [size]),
  ];
}

/** How closely to look: tsimgfs reads the image as well; or nobody reads it, since it is too large. */
export type Depth = "by qemu-img" | "and read by tsimgfs" | "too large to read";

/** Two directories with the same backing files: one where qemu-img works, one for tsimgfs. */
interface Kitchens {
  readonly theirs: string;
  readonly ours: string;
}

async function withKitchens(body: (kitchens: Kitchens) => Promise<void>): Promise<void> {
  await withScratch("create", async (directory) => {
    const kitchens = { theirs: join(directory, "theirs"), ours: join(directory, "ours") };
    for (const path of Object.values(kitchens)) {
      await mkdir(path);
      await makeBackingFiles(path);
    }
    await body(kitchens);
  });
}

async function makeBackingFiles(directory: string): Promise<void> {
  const raw = join(directory, "base.raw");
  const qcow2 = join(directory, "base.qcow2");
  // A raw file need not end on a sector: QEMU rounds it up.
  await run("truncate", ["-s", "3146000", raw]);
  await qemuIo(raw, "raw", ["write -q -P 1 64k 100k", "write -q -P 2 2M 3k"]);
  await run("qemu-img", ["create", "-q", "-f", "qcow2", qcow2, "5M"]);
  await qemuIo(qcow2, "qcow2", ["write -q -P 3 0 5k", "write -q -P 4 4M 1M", "write -q -z 1M 1M"]);
}

/**
 * Creates the image both ways. What qemu-img refuses must be refused, in one line and without a file left;
 * else the two images must be the same in all but their layout, and stay so when they are written to.
 */
export async function expectSameAsQemu(wanted: CreateCase, depth: Depth): Promise<void> {
  await withKitchens(async (kitchens) => {
    const { theirs, ours } = kitchens;
    const args = argumentsOf(wanted);
    const before = await readdir(ours);
    const reference = await attempt("qemu-img", args, { cwd: theirs });
    const result = await attemptTsimgfs(args, { cwd: ours });
    if (reference.status !== 0) {
      refusalOf(result);
      expect(await readdir(ours)).toEqual(before);
      return;
    }
    if (result.status !== 0) throw new RunError("refused, unlike qemu-img", result);
    expect(result.stderr).toBe("");
    expectSameAnnouncement(result, reference);
    await expectSameInfo(kitchens);
    await expectClean(kitchens);
    if (depth === "too large to read") return;
    await expectSameMap(kitchens, wanted);
    if (depth === "and read by tsimgfs") await expectSameReading(kitchens);
    await expectSameContent(kitchens, wanted);
    await writeToBoth(kitchens);
    await expectClean(kitchens);
    await expectSameContent(kitchens, wanted);
  });
}

/** Newer versions of QEMU may know of further options: all our words must be there, in this order. */
function expectSameAnnouncement(ours: RunResult, theirs: RunResult): void {
  const words = theirs.stdout.trimEnd().split(" ");
  const common = ours.stdout
    .trimEnd()
    .split(" ")
    .filter((word, index, all) => words.indexOf(word) > words.indexOf(all[index - 1] ?? ""));
  expect(common.join(" ")).toBe(ours.stdout.trimEnd());
}

/** What one of the programs says of an image. */
function json(program: "qemu-img" | "tsimgfs", args: string[], cwd: string): Promise<unknown> {
  const [command, ...rest] = program === "tsimgfs" ? [process.execPath, MAIN] : [program];
  return runJson(command, [...rest, ...args, "--output", "json", IMAGE], { cwd });
}

/** What qemu-img says of an image, without what depends on its layout. */
async function infoOf(directory: string): Promise<unknown> {
  const info = asRecord(await json("qemu-img", ["info"], directory));
  const { "actual-size": _actualSize, children: _children, ...comparable } = info;
  return comparable;
}

async function expectSameInfo({ theirs, ours }: Kitchens): Promise<void> {
  expect(await infoOf(ours)).toEqual(await infoOf(theirs));
}

/** The runs of a map without host offsets; and without their zeros, if these are the host's matter. */
function runsOf(entries: readonly MapEntry[], zeros: "zeros count" | "all the same"): string[] {
  const runs: { length: number; status: string }[] = [];
  for (const { length, depth, present, data, zero } of entries) {
    const what = `depth ${depth}${present ? " present" : ""}${data ? " data" : ""}`;
    const status = zeros === "zeros count" && zero ? `${what} zero` : what;
    const last = runs.at(-1);
    if (last?.status === status) last.length += length;
    else runs.push({ length, status });
  }
  return runs.map(({ length, status }) => `${length} ${status}`);
}

async function expectSameMap({ theirs, ours }: Kitchens, wanted: CreateCase): Promise<void> {
  const map = parseMap(await json("qemu-img", ["map"], ours));
  const reference = parseMap(await json("qemu-img", ["map"], theirs));
  // QEMU writes zeros to the end of a last cluster that is not whole, and forgets to preallocate the
  // external data file then: which zeros are holes differs.
  const preallocated = (wanted.options["preallocation"] ?? "off") !== "off";
  const zeros = preallocated ? "all the same" : "zeros count";
  expect(runsOf(map, zeros)).toEqual(runsOf(reference, zeros));
}

/** tsimgfs info and map agree with qemu-img on the new image. */
async function expectSameReading({ ours }: Kitchens): Promise<void> {
  const info = await json("tsimgfs", ["info"], ours);
  expect(missingOrDifferent(info, await json("qemu-img", ["info"], ours))).toEqual([]);
  const map = await json("tsimgfs", ["map"], ours);
  expect(parseMap(map)).toEqual(parseMap(await json("qemu-img", ["map"], ours)));
}

/** qemu-img check finds nothing at all. */
async function expectClean({ ours }: Kitchens): Promise<void> {
  const check = asRecord(await json("qemu-img", ["check"], ours));
  expect(check).toMatchObject({ "check-errors": 0 });
  expect(check["leaks"] ?? 0).toBe(0);
  expect(check["corruptions"] ?? 0).toBe(0);
}

async function expectSameContent(kitchens: Kitchens, { options }: CreateCase): Promise<void> {
  const directories = [kitchens.theirs, kitchens.ours];
  let images = directories.map((directory) => join(directory, IMAGE));
  if (options["data_file"] !== undefined) {
    // QEMU looks for data files in the working directory: each image must be read from its own.
    const args = ["convert", "-f", "qcow2", "-O", "qcow2", IMAGE, "copy.qcow2"];
    for (const cwd of directories) await run("qemu-img", args, { cwd });
    images = directories.map((directory) => join(directory, "copy.qcow2"));
  }
  await run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "qcow2", ...images]);
}

/** Writes to the start, to the middle and to the last sectors. */
async function writeToBoth({ theirs, ours }: Kitchens): Promise<void> {
  const size = Number(asRecord(await infoOf(ours))["virtual-size"]);
  const length = Math.min(1536, size);
  if (length === 0) return;
  const middle = Math.floor(size / 1024) * 512;
  const offsets = [0, Math.min(middle, size - length), size - length];
  const commands = offsets.map((offset, index) => `write -P ${index + 5} ${offset} ${length}`);
  for (const directory of [theirs, ours]) {
    const args = ["-f", "qcow2", ...commands.flatMap((command) => ["-c", command]), IMAGE];
    const { stdout } = await run("qemu-io", args, { cwd: directory });
    expect(stdout.match(/^wrote /gm)).toHaveLength(commands.length);
  }
}
