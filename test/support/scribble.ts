// Fills images through qemu-io at random but repeatable places: data, zeros, discards, compressed clusters.

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type ImageFormat, qemuIo } from "./qemu.ts";
import type { Random } from "./random.ts";

/** What to do to an image; `zero` keeps host clusters (write -z), `unmap` gives them up (write -z -u). */
export type ScribbleKind = "write" | "zero" | "unmap" | "discard";

export interface ScribblePlan {
  readonly size: number;
  readonly clusterSize: number;
  readonly kinds: readonly [ScribbleKind, ...ScribbleKind[]];
  readonly count: number;
  /** How many clusters to write compressed first. */
  readonly compressedClusters?: number;
  /** Unit of zeros and discards; without it the cluster size. */
  readonly zeroUnit?: number;
}

/** Not a multiple of any power of two: repetitions of the pattern never meet a cluster boundary alike. */
const PATTERN_SIZE = 263_171;

const SECTOR = 512;

/** Makes files to write from: some compress well, some not at all. Returns their paths. */
export async function makePatterns(directory: string, random: Random): Promise<Patterns> {
  const text: string[] = [];
  const noise: string[] = [];
  for (let index = 0; index < 4; index++) {
    const textFile = join(directory, `pattern-text-${index}`);
    const noiseFile = join(directory, `pattern-noise-${index}`);
    await writeFile(textFile, random.text(PATTERN_SIZE));
    await writeFile(noiseFile, random.bytes(PATTERN_SIZE));
    text.push(textFile);
    noise.push(noiseFile);
  }
  return { text, noise };
}

export interface Patterns {
  readonly text: readonly string[];
  readonly noise: readonly string[];
}

function pickFile(random: Random, files: readonly string[]): string {
  const file = files[random.below(files.length)];
  if (file === undefined) {
    throw new Error("no pattern files");
  }
  return file;
}

/** Compressed writes: whole clusters, in runs, each cluster at most once since QEMU refuses a second time. */
function compressedWrites(random: Random, plan: ScribblePlan, patterns: Patterns): string[] {
  const clusters = Math.ceil(plan.size / plan.clusterSize);
  const wanted = Math.min(plan.compressedClusters ?? 0, clusters);
  const commands: string[] = [];
  let left = wanted;
  let cluster = random.below(Math.max(1, Math.floor((clusters - wanted) / 2)));
  while (left > 0 && cluster < clusters) {
    const run = Math.min(left, random.between(1, 6), clusters - cluster);
    const start = cluster * plan.clusterSize;
    const length = Math.min(run * plan.clusterSize, plan.size - start);
    const file = pickFile(random, random.below(5) === 0 ? patterns.noise : patterns.text);
    commands.push(`write -q -c -s ${file} ${start} ${length}`);
    left -= run;
    cluster += run + random.below(2);
  }
  return commands;
}

function otherCommand(
  random: Random,
  plan: ScribblePlan,
  kind: ScribbleKind,
  patterns: Patterns,
): string {
  const unit =
    kind === "write" || random.below(4) === 0 ? SECTOR : (plan.zeroUnit ?? plan.clusterSize);
  const units = Math.max(1, Math.floor(plan.size / unit));
  const start = Math.min(random.below(units) * unit, plan.size - SECTOR);
  const most = Math.max(1, Math.floor((plan.clusterSize * 2.5) / unit));
  const length = Math.min(random.between(1, most) * unit, plan.size - start);
  switch (kind) {
    case "write":
      return `write -q -s ${pickFile(random, [...patterns.noise, ...patterns.text])} ${start} ${length}`;
    case "zero":
      return `write -q -z ${start} ${length}`;
    case "unmap":
      return `write -q -z -u ${start} ${length}`;
    case "discard":
      return `discard -q ${start} ${length}`;
  }
}

/** The commands of a plan: compressed clusters first, then the other kinds in turn at random places. */
export function scribbleCommands(random: Random, plan: ScribblePlan, patterns: Patterns): string[] {
  const commands = compressedWrites(random, plan, patterns);
  for (let index = 0; index < plan.count && plan.size >= SECTOR; index++) {
    const kind = plan.kinds[index % plan.kinds.length] ?? "write";
    commands.push(otherCommand(random, plan, kind, patterns));
  }
  // The first and the last sector of the disk are where off-by-one errors show.
  if (plan.size >= 2 * SECTOR && random.below(2) === 0) {
    const last = (Math.floor(plan.size / SECTOR) - 1) * SECTOR;
    commands.push(`write -q -s ${pickFile(random, patterns.noise)} ${last} ${SECTOR}`);
    commands.push(`write -q -s ${pickFile(random, patterns.noise)} 0 ${SECTOR}`);
  }
  return commands;
}

/** Carries out a plan on an image. */
export async function scribble(
  image: string,
  format: ImageFormat,
  random: Random,
  plan: ScribblePlan,
  patterns: Patterns,
): Promise<void> {
  await qemuIo(image, format, scribbleCommands(random, plan, patterns));
}

/** A disk size of about `clusters` clusters that ends inside one, where sectors allow that. */
export function oddSize(random: Random, clusterSize: number, clusters: number): number {
  return clusters * clusterSize + SECTOR * random.below(clusterSize / SECTOR);
}
