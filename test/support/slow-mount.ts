// A mount of images that lie on a slow medium, and readers whose reads have no answer.

import { readdirSync } from "node:fs";
import { join } from "node:path";
import { asArray, asRecord, numberIn } from "./json.ts";
import { type Mount, mounted } from "./mounted.ts";
import { createImage } from "./qemu.ts";
import { run, runJson, until } from "./run.ts";
import { withScratch } from "./scratch.ts";
import { type SlowDirectory, withSlowFiles } from "./slow-files.ts";
import { threadOptions, transportHas } from "./transport.ts";
import { checkImage } from "./write-images.ts";

const MIB = 2 ** 20;
const SIZE = 32 * MIB;
/** Written; the rest of the disk is unallocated. */
export const WRITTEN = 24 * MIB;
/** What is there. */
export const PATTERN = 0x5a;
export const THREADS = 16;
export const IMAGE = "disk.qcow2";
const BASE = "base.qcow2";
/** The cluster whose reads are held. */
const STUCK = 10 * MIB;
const CLUSTER = 65536;

/** An image, or an empty one over it. */
export type SlowKind = "image" | "overlay";

/** How an image must be left behind: a daemon that was killed leaks at most. */
export type Leftover = "clean" | "leaks";

/** Calls `body` with an image on a slow medium, and where it really is. */
export async function withSlowImage(
  kind: SlowKind,
  leftover: Leftover,
  body: (slow: SlowDirectory, path: string) => Promise<void>,
): Promise<void> {
  await withScratch("slow", async (directory) => {
    const data = join(directory, kind === "image" ? IMAGE : BASE);
    const path = join(directory, IMAGE);
    await createImage(data, "qcow2", { size: SIZE });
    await run("qemu-io", ["-f", "qcow2", "-c", `write -P ${PATTERN} 0 ${WRITTEN}`, data]);
    if (kind === "overlay") {
      const backing = { file: BASE, format: "qcow2" } as const;
      await createImage(path, "qcow2", { size: SIZE, backing });
    }
    await withSlowFiles(directory, (slow) => body(slow, path));
    const { verdict, output } = await checkImage(path);
    if (verdict !== "clean" && verdict !== leftover) throw new Error(`left behind: ${output}`);
  });
}

/** As `withSlowImage`, and mounted. */
export async function withSlowMount(
  kind: SlowKind,
  options: { args: readonly string[]; threads?: number; leftover?: Leftover },
  body: (slow: SlowDirectory, mount: Mount, image: string, path: string) => Promise<void>,
): Promise<void> {
  const { args, threads = THREADS, leftover = "clean" } = options;
  await withSlowImage(kind, leftover, async (slow, path) => {
    const image = slow.file(IMAGE);
    await mounted([image], { args: [...threadOptions(threads), ...args] }, async (mount) => {
      const tasks = `/proc/${mount.daemonPid()}/task`;
      const isStarted = () => !transportHas("threads") || readdirSync(tasks).length > threads;
      await until("all I/O threads were started", isStarted);
      await body(slow, mount, image, path);
    });
  });
}

/** Writes 64 KiB at a place that is not read. */
export async function writeDurably(device: string, offset: number): Promise<void> {
  await run("dd", writerArgs(device, offset, "fsync"));
}

/** For a dd that writes 64 KiB. */
export function writerArgs(device: string, offset: number, sync: "fsync" | "nocreat"): string[] {
  return [
    ...["if=/dev/urandom", `of=${device}`, "bs=64k", "count=1", `conv=notrunc,${sync}`],
    ...[`seek=${offset}`, "oflag=seek_bytes", "status=none"],
  ];
}

/** Where the cluster that is stuck lies in the file that has it. */
export async function holdStuck(slow: SlowDirectory, kind: SlowKind): Promise<void> {
  const name = kind === "image" ? IMAGE : BASE;
  const map = await runJson("qemu-img", ["map", "-U", "--output", "json", slow.file(name)]);
  const extent = asArray(map)
    .map(asRecord)
    .find((each) => numberIn(each, "start") + numberIn(each, "length") > STUCK);
  if (extent === undefined) throw new Error(`nothing at ${STUCK}`);
  const start = numberIn(extent, "offset") + STUCK - numberIn(extent, "start");
  slow.tell({ kind: "hold", name, start, end: start + CLUSTER });
}

/** For a dd that reads a block of the cluster that is stuck: not through the page cache, which locks pages. */
export function stuckReaderArgs(device: string): string[] {
  const from = [`skip=${STUCK / 4096}`, "iflag=direct"];
  return [`if=${device}`, "of=/dev/null", "bs=4096", "count=1", ...from];
}
