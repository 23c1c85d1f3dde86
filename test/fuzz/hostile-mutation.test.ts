// Images of qemu-img, damaged at random: what qemu-img still reads, we read alike; nothing crashes or hangs.

import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, it } from "vitest";
import { checkHostile, type HostileCase } from "../support/hostile-case.ts";
import { mutate } from "../support/hostile-mutator.ts";
import type { Strictness } from "../support/hostile-outcome.ts";
import { Watchdog } from "../support/hostile-watchdog.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";

/** Mutants of each kind. */
const COUNT = byScale(25, 300);

interface Kind {
  readonly name: string;
  readonly format: "qcow2" | "qed";
  /** Options of qemu-img create. */
  readonly options: string;
  /** Over a raw backing file. */
  readonly backed?: boolean;
  /** Compressed by qemu-img convert -c. */
  readonly compressed?: boolean;
  readonly snapshots?: boolean;
}

const KINDS: readonly Kind[] = [
  { name: "qcow2", format: "qcow2", options: "cluster_size=64k" },
  { name: "qcow2 with 512-byte clusters", format: "qcow2", options: "cluster_size=512" },
  { name: "qcow2 version 2", format: "qcow2", options: "compat=0.10,cluster_size=4k" },
  {
    name: "qcow2 with extended L2 entries and a backing file",
    format: "qcow2",
    options: "extended_l2=on,cluster_size=16k",
    backed: true,
  },
  { name: "qcow2 with a backing file", format: "qcow2", options: "cluster_size=4k", backed: true },
  {
    name: "qcow2 with 1-bit refcounts",
    format: "qcow2",
    options: "cluster_size=4k,refcount_bits=1",
  },
  {
    name: "qcow2 with shared snapshots",
    format: "qcow2",
    options: "cluster_size=4k",
    snapshots: true,
  },
  {
    name: "qcow2, zlib compressed",
    format: "qcow2",
    options: "cluster_size=16k",
    compressed: true,
  },
  {
    name: "qcow2, zstd compressed",
    format: "qcow2",
    options: "cluster_size=16k,compression_type=zstd",
    compressed: true,
  },
  { name: "QED", format: "qed", options: "cluster_size=4k,table_size=2" },
  { name: "QED with a backing file", format: "qed", options: "cluster_size=64k", backed: true },
];

const SIZE = 512 * 1024;

/** QEMU checks only the first cluster of a contiguous run in QED, and reads zeros past the end behind it. */
function strictnessOf(kind: Kind): Strictness {
  return kind.format === "qed" ? /^\S+ cluster offset .* within/ : "same";
}

/** Makes a good image of a kind with qemu-img and qemu-io; its backing file, if any, lies beside it. */
async function makeImage(kind: Kind, directory: string): Promise<string> {
  const random = new Random(`mutation ${kind.name}`);
  const base = join(directory, "base.img");
  writeFileSync(base, random.text(SIZE));
  const path = join(directory, "image");
  if (kind.compressed === true) {
    await run("qemu-img", [
      "convert",
      "-c",
      "-f",
      "raw",
      "-O",
      kind.format,
      "-o",
      kind.options,
      base,
      path,
    ]);
    return path;
  }
  const backing = kind.backed === true ? ["-b", "base.img", "-F", "raw"] : [];
  await run("qemu-img", [
    "create",
    "-q",
    "-f",
    kind.format,
    "-o",
    kind.options,
    ...backing,
    path,
    String(SIZE),
  ]);
  const commands = [0, 1, 2, 3, 4, 5].map(
    (index) => `write -P ${index + 65} ${index * 72}k ${random.between(1, 40)}k`,
  );
  const zeros = kind.options.includes("0.10") ? [] : ["write -z 8k 24k", "write -z 300k 64k"];
  await run("qemu-io", [
    "-f",
    kind.format,
    ...[...commands, ...zeros].flatMap((command) => ["-c", command]),
    path,
  ]);
  if (kind.snapshots === true) {
    await run("qemu-img", ["snapshot", "-c", "first", path]);
    await run("qemu-io", ["-f", kind.format, "-c", "write -P 99 100k 100k", path]);
    await run("qemu-img", ["snapshot", "-c", "second", path]);
  }
  return path;
}

describe.each(KINDS.map((kind) => [kind.name, kind] as const))("mutants of %s", (_name, kind) => {
  const watchdog = new Watchdog();
  let original: string;
  beforeAll(async () => {
    original = await makeImage(kind, await makeScratch("mutation"));
  });
  afterAll(() => watchdog.close());

  it.each(Array.from({ length: COUNT }, (_, index) => index))("number %i", async (index) => {
    const mutant = mutate(readFileSync(original), new Random(`mutant ${kind.name} ${index}`));
    const write: HostileCase["write"] = (directory) => {
      copyFileSync(join(dirname(original), "base.img"), join(directory, "base.img"));
      const path = join(directory, "image");
      writeFileSync(path, mutant.bytes);
      return path;
    };
    const name = `mutant ${index} of ${kind.name}: ${mutant.changes.join("; ")}`;
    await checkHostile(
      { name, format: kind.format, write, strictness: strictnessOf(kind) },
      watchdog,
    );
  });
});
