// Images of all kinds to write to, and what must hold of them afterwards according to qemu-img.

import { stat } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { asRecord } from "./json.ts";
import { type CreateOptions, convertToRaw, createImage, type ImageFormat } from "./qemu.ts";
import { Random } from "./random.ts";
import { attempt, run } from "./run.ts";
import { withScratch } from "./scratch.ts";
import { makePatterns, type Patterns, type ScribbleKind, scribble } from "./scribble.ts";

const MIB = 2 ** 20;
const SECTOR = 512;

/** A kind of image to write to. */
export interface WriteKind {
  readonly name: string;
  readonly format: ImageFormat;
  /** Bytes; where tests meet boundaries. Without it 64 KiB. */
  readonly clusterSize?: number;
  /** Creation options besides the cluster size. */
  readonly options?: Readonly<Record<string, string | number>>;
  /** Kind of the backing file, which ends before the disk does. */
  readonly backing?: ImageFormat;
  /** The guest data lie in a file of their own. */
  readonly dataFile?: boolean;
  /** About a third of the clusters are compressed. */
  readonly compressed?: boolean;
  /** An internal snapshot shares most clusters. */
  readonly snapshot?: boolean;
  /** There is a persistent bitmap, which whoever does not keep it has to disown. */
  readonly bitmap?: boolean;
}

/** The kinds that writing may treat differently. */
export const WRITE_KINDS = [
  { name: "v3", format: "qcow2" },
  { name: "v2", format: "qcow2", options: { compat: "0.10" } },
  { name: "clusters-512", format: "qcow2", clusterSize: 512 },
  { name: "clusters-4k", format: "qcow2", clusterSize: 4096 },
  { name: "clusters-2m", format: "qcow2", clusterSize: 2 * MIB },
  { name: "refcount-1", format: "qcow2", clusterSize: 4096, options: { refcount_bits: 1 } },
  { name: "refcount-64", format: "qcow2", options: { refcount_bits: 64 } },
  { name: "lazy-refcounts", format: "qcow2", options: { lazy_refcounts: "on" } },
  { name: "preallocated", format: "qcow2", options: { preallocation: "metadata" } },
  { name: "compressed", format: "qcow2", compressed: true },
  { name: "snapshot", format: "qcow2", snapshot: true },
  { name: "snapshot-v2", format: "qcow2", options: { compat: "0.10" }, snapshot: true },
  { name: "extended-l2", format: "qcow2", options: { extended_l2: "on" } },
  {
    name: "extended-l2-16k-over-qcow2",
    format: "qcow2",
    clusterSize: 16384,
    options: { extended_l2: "on" },
    backing: "qcow2",
  },
  { name: "bitmap", format: "qcow2", bitmap: true },
  { name: "data-file", format: "qcow2", dataFile: true },
  { name: "data-file-raw", format: "qcow2", dataFile: true, options: { data_file_raw: "on" } },
  { name: "over-qcow2", format: "qcow2", backing: "qcow2", compressed: true },
  { name: "over-raw", format: "qcow2", backing: "raw", snapshot: true },
  { name: "v2-over-qed", format: "qcow2", options: { compat: "0.10" }, backing: "qed" },
  { name: "raw", format: "raw" },
  { name: "qed", format: "qed" },
  {
    name: "qed-16k-over-qcow2",
    format: "qed",
    clusterSize: 16384,
    options: { table_size: 2 },
    backing: "qcow2",
  },
] as const satisfies readonly WriteKind[];

export type WriteKindName = (typeof WRITE_KINDS)[number]["name"];

/** The kind of a name. */
export function writeKind(name: WriteKindName): WriteKind {
  const kind = WRITE_KINDS.find((candidate) => candidate.name === name);
  if (kind === undefined) {
    throw new Error(`no kind of image ${name}`);
  }
  return kind;
}

/** An image, and what its disk is to contain. */
export class WriteImage {
  readonly kind: WriteKind;
  readonly directory: string;
  readonly path: string;
  /** A raw file with the bytes of the disk: tests write here what they write to the device. */
  readonly expected: string;
  /** Size of the disk, bytes. */
  readonly size: number;
  readonly clusterSize: number;
  readonly patterns: Patterns;
  /** Checksums of what must never change. */
  readonly #fixed: string;

  constructor(image: {
    kind: WriteKind;
    directory: string;
    path: string;
    expected: string;
    size: number;
    clusterSize: number;
    patterns: Patterns;
    fixed: string;
  }) {
    this.kind = image.kind;
    this.directory = image.directory;
    this.path = image.path;
    this.expected = image.expected;
    this.size = image.size;
    this.clusterSize = image.clusterSize;
    this.patterns = image.patterns;
    this.#fixed = image.fixed;
  }

  /**
   * After the mount: the disk is as expected, the image has neither errors nor leaks, backing files and
   * snapshots are what they were.
   *
   * @param after a kill: leaked clusters of QED before others in use are there for good
   */
  async expectIntact(after: "close" | "kill" = "close"): Promise<void> {
    await expectDisk(this.path, this.kind.format, this.expected);
    if (this.kind.options?.["data_file_raw"] === "on") {
      await expectDisk(dataPath(this.directory), "raw", this.expected);
    }
    if (after === "kill") await expectOrdered(this.path, this.kind.format);
    else await expectClean(this.path, this.kind.format);
    expect(await fixedSums(this.kind, this.directory, this.path), "what must not change").toBe(
      this.#fixed,
    );
  }
}

/** Expects that qemu-img finds the bytes of a raw file in an image. */
export async function expectDisk(
  image: string,
  format: ImageFormat,
  expected: string,
): Promise<void> {
  const compare = await attempt("qemu-img", [
    "compare",
    ...["-f", format, "-F", "raw"],
    ...[image, expected],
  ]);
  expect(compare.status, `qemu-img compare: ${compare.stdout}${compare.stderr}`).toBe(0);
}

/** What qemu-img check finds: nothing, leaked clusters, or worse. */
export async function checkImage(
  image: string,
  format: ImageFormat = "qcow2",
): Promise<{ readonly verdict: "clean" | "leaks" | "corrupt"; readonly output: string }> {
  if (format === "raw") {
    return { verdict: "clean", output: "" };
  }
  const check = await attempt("qemu-img", ["check", "--output", "json", "-f", format, image]);
  const output = check.stdout + check.stderr;
  const report = check.stdout.startsWith("{") ? asRecord(JSON.parse(check.stdout)) : {};
  const errors = Number(report["corruptions"] ?? 0) + Number(report["check-errors"] ?? 0);
  if (check.status === 0 && errors === 0) {
    return { verdict: "clean", output };
  }
  return { verdict: check.status === 3 && errors === 0 ? "leaks" : "corrupt", output };
}

/** Expects that qemu-img check finds neither errors nor leaks. */
export async function expectClean(image: string, format: ImageFormat = "qcow2"): Promise<void> {
  const { verdict, output } = await checkImage(image, format);
  expect(verdict, `qemu-img check ${image}: ${output}`).toBe("clean");
}

/** As `expectClean`, for an image that was in order after a kill: QED cannot give back all that is leaked. */
export async function expectOrdered(image: string, format: ImageFormat): Promise<void> {
  if (format !== "qed") {
    await expectClean(image, format);
    return;
  }
  const { verdict, output } = await checkImage(image, format);
  expect(verdict, `qemu-img check ${image}: ${output}`).not.toBe("corrupt");
}

/** Bytes of a file and the bytes that the host has allocated for it. */
export async function fileUsage(file: string): Promise<{ length: number; allocated: number }> {
  const { size, blocks } = await stat(file);
  return { length: size, allocated: blocks * 512 };
}

const SNAPSHOT = "before";

/** Checksums of the backing file and of the disk of the snapshot. */
async function fixedSums(kind: WriteKind, directory: string, path: string): Promise<string> {
  const files: string[] = [];
  if (kind.backing !== undefined) {
    files.push(basePath(directory, kind.backing));
  }
  if (kind.snapshot === true) {
    const content = join(directory, "snapshot.raw");
    await convertSnapshot(path, content);
    files.push(content);
  }
  return files.length === 0 ? "" : (await run("sha256sum", files)).stdout;
}

/**
 * Writes the disk of the snapshot to a raw file, by going back to it in a copy of the image: qemu-img
 * convert -l would cut or fill it to the size that the disk has now.
 */
async function convertSnapshot(path: string, out: string): Promise<void> {
  const copy = `${path}.copy`;
  await run("cp", ["--sparse=always", path, copy]);
  await run("qemu-img", ["snapshot", "-q", "-a", SNAPSHOT, copy]);
  await convertToRaw(copy, "qcow2", out);
  await run("rm", [copy]);
}

function basePath(directory: string, format: ImageFormat): string {
  return join(directory, `base.${format}`);
}

function dataPath(directory: string): string {
  return join(directory, "data");
}

/** Makes the backing file: shorter than the disk, with an end inside a cluster. */
async function makeBase(
  directory: string,
  format: ImageFormat,
  size: number,
  random: Random,
  patterns: Patterns,
): Promise<NonNullable<CreateOptions["backing"]>> {
  const file = basePath(directory, format);
  const baseSize = Math.ceil((size * 0.6) / SECTOR) * SECTOR;
  await createImage(file, format, { size: baseSize });
  const plan = { size: baseSize, clusterSize: 65536, kinds: ["write"], count: 60 } as const;
  await scribble(file, format, random, plan, patterns);
  return { file, format };
}

/** Size of the disk of a kind: some clusters and a part of one, and several L2 tables where they are small. */
function diskSize(clusterSize: number, random: Random, size: number): number {
  const most = clusterSize < 4096 ? Math.min(size, 4 * MIB) : size;
  const clusters = Math.max(4, Math.floor(most / clusterSize));
  return clusters * clusterSize - SECTOR * random.below(clusterSize / SECTOR);
}

/** Makes an image of a kind with data, zeros and holes in it. */
async function makeImage(kind: WriteKind, directory: string, about: number): Promise<WriteImage> {
  const { name, format, clusterSize = 65536, options = {} } = kind;
  const random = new Random(`write ${name}`);
  const patterns = await makePatterns(directory, random);
  const size = diskSize(clusterSize, random, about);
  const backing =
    kind.backing === undefined
      ? undefined
      : await makeBase(directory, kind.backing, size, random, patterns);
  const path = join(directory, `${name}.${format}`);
  await createImage(path, format, {
    size,
    options: {
      ...(format === "raw" ? {} : { cluster_size: clusterSize }),
      ...(kind.dataFile === true ? { data_file: dataPath(directory) } : {}),
      ...options,
    },
    ...(backing === undefined ? {} : { backing }),
  });
  const plan = {
    size,
    clusterSize,
    kinds: ["write", "zero", "write", format === "raw" ? "write" : "unmap"] as const satisfies [
      ScribbleKind,
      ...ScribbleKind[],
    ],
    count: 24,
    compressedClusters: kind.compressed === true ? Math.ceil(size / clusterSize / 3) : 0,
  };
  await scribble(path, format, random, plan, patterns);
  if (kind.bitmap === true) {
    await run("qemu-img", ["bitmap", "--add", path, "changes"]);
  }
  if (kind.snapshot === true) {
    await run("qemu-img", ["snapshot", "-q", "-c", SNAPSHOT, path]);
    await scribble(path, format, random, { ...plan, compressedClusters: 0, count: 4 }, patterns);
  }
  const expected = join(directory, "expected.raw");
  await convertToRaw(path, format, expected);
  const fixed = await fixedSums(kind, directory, path);
  return new WriteImage({ kind, directory, path, expected, size, clusterSize, patterns, fixed });
}

/** Calls `body` with a new image of a kind whose disk has about `size` bytes; removes it afterwards. */
export async function withWriteImage<T>(
  kind: WriteKind,
  size: number,
  body: (image: WriteImage) => Promise<T>,
): Promise<T> {
  return await withScratch(`write-${kind.name}`, async (directory) =>
    body(await makeImage(kind, directory, size)),
  );
}
