/** One run: what was asked for, and where it happens. From it, the measurements of both kinds. */

import { basename, join } from "node:path";
import { MIB } from "./cell.ts";
import type { CleanupStack } from "./cleanup-stack.ts";
import { isCopyCell } from "./copy-cells.ts";
import { makeFileTree } from "./file-tree.ts";
import { hasIoUring } from "./fio.ts";
import {
  type ImageName,
  READ_IMAGE_NAMES,
  WRITE_IMAGE_NAMES,
  type WriteImageName,
} from "./image-names.ts";
import { makeImage } from "./images.ts";
import { hasLoop } from "./loop-device.ts";
import { measureReads } from "./measure-reads.ts";
import { measureWrites } from "./measure-writes.ts";
import type { Options } from "./options.ts";
import type { Plan } from "./plan.ts";
import { allowedCpus } from "./proc.ts";
import { READ_CELL_NAMES, readCellsOf } from "./read-cells.ts";
import { makeDirectory } from "./requirements.ts";
import type { ImageResult } from "./result.ts";
import { hasProgram } from "./run-command.ts";
import { mountSlowly } from "./slow-medium.ts";
import { needsLoop, type WriteCellName, writeCellsOf } from "./write-cells.ts";
import { makeWriteSource } from "./write-images.ts";

export interface Setting {
  readonly options: Options;
  readonly directory: string;
  /** On tmpfs, if there is one. */
  readonly tmpfsDirectory: string;
  readonly rawfuse: string | undefined;
  readonly signal: AbortSignal;
  readonly progress: (text: string) => void;
  /** Tell the user, and the reader of the report. */
  readonly note: (text: string) => void;
}

export async function measureAllReads(setting: Setting): Promise<ImageResult[]> {
  const { options, directory, signal, progress, note } = setting;
  const ioUring = await hasIoUring(directory, signal);
  if (!ioUring) note("no io_uring here: the QD16 cells are left out");

  const results: ImageResult[] = [];
  const names = READ_IMAGE_NAMES.filter((known) => known !== "slow");
  for (const name of names.filter((known) => options.images.includes(known))) {
    const plan = await planFor(name, setting);
    const wanted =
      options.cells === undefined
        ? readCellsOf(name)
        : READ_CELL_NAMES.filter((cell) => options.cells?.includes(cell));
    const cells = wanted.filter((cell) => cell !== "qd16" || ioUring);
    if (plan.servers.length === 0 || cells.length === 0) continue;
    progress(`${name}: making the image`);
    const image = await makeImage(name, directory, options.sizeMib, signal);
    results.push(await measureReads({ ...plan, image, cells }));
  }
  return results;
}

const SLOW_MEDIUM_MS = 20;
/** Read at least once by each server at this pace, when contents are compared. */
const SLOW_SIZE_MIB = 64;
const SLOW_THREADS = 16;

export const SLOW_FACTS: readonly string[] = [
  `the slow medium answers each read after ${SLOW_MEDIUM_MS} ms, any number of them at once; its image has ${SLOW_SIZE_MIB} MiB; ${SLOW_THREADS} threads of tsimgfs unless --threads says another number`,
];

/** Reading an image on a slow medium. */
export async function measureSlowReads(
  setting: Setting,
  cleanup: CleanupStack,
): Promise<ImageResult[]> {
  const { options, directory, signal, progress } = setting;
  const plan = await planFor("slow", setting);
  const cells = readCellsOf("slow").filter((cell) => options.cells?.includes(cell) ?? true);
  if (plan.servers.length === 0 || cells.length === 0) return [];
  progress("slow: making the image");
  const files = await makeDirectory(directory, cleanup);
  const scratch = await makeDirectory(directory, cleanup);
  const allocated = await makeImage("allocated", files, SLOW_SIZE_MIB, signal);
  const medium = await mountSlowly(files, SLOW_MEDIUM_MS, { scratch, cleanup });
  const path = join(medium, basename(allocated.path));
  const image = { ...allocated, name: "slow", path } as const;
  const threads = options.threads ?? SLOW_THREADS;
  return [await measureReads({ ...plan, threads, image, cells })];
}

/** One divided by this is the part of the device that the copied files fill. */
const TREE_DIVISOR = 4;

const LOOP_PROGRAMS = ["losetup", "mkfs.ext4", "fsck.ext4", "mount", "umount"];

export async function measureAllWrites(setting: Setting): Promise<ImageResult[]> {
  const { directory, tmpfsDirectory, signal, progress } = setting;
  const { sizeMib } = setting.options;
  const chosen = await chooseWriteCells(setting);
  if (chosen.length === 0) return [];

  progress("making what the written images are made from");
  const random = await makeImage("raw", directory, sizeMib, signal);
  const source = await makeWriteSource(random, tmpfsDirectory, signal);
  const tree = chosen.some(({ cells }) => cells.includes("copy-tree"))
    ? await makeFileTree(join(tmpfsDirectory, "tree"), (sizeMib * MIB) / TREE_DIVISOR, signal)
    : undefined;

  const results: ImageResult[] = [];
  for (const { image, cells } of chosen) {
    const plan = await planFor(image, setting);
    results.push(await measureWrites({ ...plan, image, cells, source, tree }));
  }
  return results;
}

interface ChosenCells {
  readonly image: WriteImageName;
  readonly cells: readonly WriteCellName[];
}

/** What was asked for and can be measured here; no image without a server and a cell. */
async function chooseWriteCells(setting: Setting): Promise<ChosenCells[]> {
  const { options, signal, note } = setting;
  const wanted: ChosenCells[] = [];
  for (const image of WRITE_IMAGE_NAMES) {
    const { servers } = await planFor(image, setting);
    if (servers.length === 0 || !options.images.includes(image)) continue;
    const cells = writeCellsOf(image)
      .filter((cell) => options.cells?.includes(cell) ?? true)
      .filter((cell) => options.kinds.includes(isCopyCell(cell) ? "copy" : "write"));
    wanted.push({ image, cells });
  }
  const loops =
    !wanted.some(({ cells }) => cells.some(needsLoop)) ||
    ((await hasLoop(signal)) && (await hasAll(LOOP_PROGRAMS)));
  if (!loops)
    note("no loop devices here (root and mkfs.ext4 are needed): their cells are left out");
  return wanted
    .map(({ image, cells }) => ({
      image,
      cells: cells.filter((cell) => loops || !needsLoop(cell)),
    }))
    .filter(({ cells }) => cells.length > 0);
}

/** The C server serves raw files only. */
async function planFor(name: ImageName, setting: Setting): Promise<Plan> {
  const { options, rawfuse, directory, tmpfsDirectory, signal, progress } = setting;
  const { rounds, seconds, threads } = options;
  const servers = options.servers.filter(
    (server) => server !== "c" || (name === "raw" && rawfuse !== undefined),
  );
  const cpus = await allowedCpus();
  return {
    ...{ servers, rounds, seconds, threads, rawfuse, cpus },
    ...{ directory, copyDirectory: tmpfsDirectory, signal, progress },
  };
}

async function hasAll(programs: readonly string[]): Promise<boolean> {
  for (const program of programs) {
    if (!(await hasProgram(program))) return false;
  }
  return true;
}
