// Images on a slow medium: a file system of ours answers each read of the image late, or not until it is told to.

import { readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { type Mount, mounted } from "../support/mounted.ts";
import { createImage } from "../support/qemu.ts";
import { run, runJson, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { type SlowDirectory, withSlowFiles } from "../support/slow-files.ts";
import { casesOfTransport, itNeeds, threadOptions, transportHas } from "../support/transport.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const SIZE = 32 * MIB;
/** Written; the rest of the disk is unallocated. */
const WRITTEN = 24 * MIB;
const DELAY_MS = 20;
const THREADS = 16;
/** Of 16 readers: each also spends time that is not a read of the image. */
const AT_ONCE = 12;
const IMAGE = "disk.qcow2";
const BASE = "base.qcow2";
/** The cluster whose reads are held. */
const STUCK = 10 * MIB;
const CLUSTER = 65536;
/** What others read ends so far before that the host does not read ahead into it. */
const READ_END = 6 * MIB;

/** The daemon waits for half a minute. */
const ENDING_MS = 90_000;

type Kind = "image" | "overlay";

/** How a mount is told to end while a read has no answer: half a minute each. */
const ENDS = casesOfTransport(
  "never answers",
  [
    { how: "SIGTERM", args: ["-r"] },
    { how: "SIGTERM", args: [] },
    ...byScale([], [{ how: "a lazy unmount", args: [] }] as const),
  ] as const,
  1,
);

/** An image, or an empty one over it, on a slow medium; with 16 threads, where the transport has any. */
async function withSlowMount(
  kind: Kind,
  args: readonly string[],
  body: (slow: SlowDirectory, mount: Mount, image: string) => Promise<void>,
): Promise<void> {
  await withScratch("slow", async (directory) => {
    const data = join(directory, kind === "image" ? IMAGE : BASE);
    await createImage(data, "qcow2", { size: SIZE });
    await run("qemu-io", ["-f", "qcow2", "-c", `write -P 0x5a 0 ${WRITTEN}`, data]);
    if (kind === "overlay") {
      const backing = { file: BASE, format: "qcow2" } as const;
      await createImage(join(directory, IMAGE), "qcow2", { size: SIZE, backing });
    }
    await withSlowFiles(directory, async (slow) => {
      const image = slow.file(IMAGE);
      await mounted([image], { args: [...threadOptions(THREADS), ...args] }, async (mount) => {
        // Until then the main thread serves, and hears no signals while a read of its own has no answer.
        const threads = `/proc/${mount.daemonPid()}/task`;
        await until(
          "all I/O threads were started",
          () => !transportHas("threads") || readdirSync(threads).length > THREADS,
        );
        await body(slow, mount, image);
      });
    });
    await expectClean(join(directory, IMAGE));
  });
}

/** Reads 4 KiB at random places below `end` in several processes at once. */
async function readRandomly(
  file: string,
  { processes, reads, end }: { processes: number; reads: number; end: number },
): Promise<void> {
  await run("fio", [
    ...["--name=read", `--filename=${file}`, `--size=${end}`, "--bs=4k", "--rw=randread"],
    ...["--ioengine=psync", "--direct=1", `--numjobs=${processes}`, `--number_ios=${reads}`],
    ...["--randseed=1", "--group_reporting", "--minimal"],
  ]);
}

/** Writes 64 KiB at a place that is not read. */
async function writeDurably(device: string, offset: number): Promise<void> {
  await run("dd", [
    ...["if=/dev/urandom", `of=${device}`, "bs=64k", "count=1", "conv=notrunc,fsync"],
    ...[`seek=${offset}`, "oflag=seek_bytes", "status=none"],
  ]);
}

/** Where the cluster that is stuck lies in the file that has it. */
async function holdStuck(slow: SlowDirectory, kind: Kind): Promise<void> {
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
function readerArgs(device: string): string[] {
  const from = [`skip=${STUCK / 4096}`, "iflag=direct"];
  return [`if=${device}`, "of=/dev/null", "bs=4096", "count=1", ...from];
}

/** Calls `body` while a process reads what has no answer. */
async function withStuckReader(
  slow: SlowDirectory,
  kind: Kind,
  device: string,
  body: () => Promise<void>,
): Promise<void> {
  await holdStuck(slow, kind);
  await withProgram("dd", readerArgs(device), async (reader) => {
    await until("a read has no answer", async () => (await slow.report()).held > 0);
    await body();
    expect(reader.isRunning).toBe(true);
    slow.tell({ kind: "release" });
    expect(await reader.end()).toBe(0);
  });
}

describe("an image on a slow medium", () => {
  itNeeds("threads").each([
    { kind: "image", args: ["-r"] },
    { kind: "image", args: [] },
    { kind: "overlay", args: ["-r"] },
    { kind: "overlay", args: [] },
  ] as const)("is read by 16 readers at once: $kind $args", async ({ kind, args }) => {
    await withSlowMount(kind, args, async (slow, mount, image) => {
      slow.tell({ kind: "delay", ms: DELAY_MS });
      slow.tell({ kind: "forget" });
      await readRandomly(mount.device(image), { processes: THREADS, reads: 40, end: WRITTEN });
      const { mostAtOnce } = await slow.report();
      expect(mostAtOnce).toBeGreaterThanOrEqual(AT_ONCE);
    });
  });

  itNeeds("threads").each([
    { kind: "image", args: ["-r"] },
    { kind: "image", args: [] },
    { kind: "overlay", args: [] },
    { kind: "overlay", args: ["--no-copy-on-read"] },
  ] as const)("goes on while one read has no answer: $kind $args", async ({ kind, args }) => {
    await withSlowMount(kind, args, async (slow, mount, image) => {
      const device = mount.device(image);
      const isWritable = !args.some((each) => each === "-r");
      // What a file gets at its end must be there before: our slow files become longer only between reads.
      if (isWritable) await writeDurably(device, WRITTEN + MIB);
      await withStuckReader(slow, kind, device, async () => {
        await readRandomly(device, { processes: 4, reads: 25, end: READ_END });
        expect(asRecord(JSON.parse(await readFile(mount.stats(image), "utf8")))).toBeDefined();
        expect(await readFile(join(mount.mountPoint, "metrics"), "utf8")).toContain("# EOF");
        await tsimgfs(["stats", device]);
        // In place, and to clusters that are new.
        const offsets = isWritable ? [0, WRITTEN + MIB, WRITTEN + 4 * MIB] : [];
        for (const offset of offsets) await writeDurably(device, offset);
        expect((await slow.report()).held).toBe(1);
      });
    });
  });

  it.each(ENDS)(
    "that never answers does not keep the daemon: $args $how",
    async ({ args, how }) => {
      await withSlowMount("image", args, async (slow, mount, image) => {
        await holdStuck(slow, "image");
        const device = mount.device(image);
        await withProgram("dd", readerArgs(device), async (reader) => {
          await until("a read has no answer", async () => (await slow.report()).held > 0);
          if (how === "SIGTERM") process.kill(mount.daemonPid(), how);
          else {
            await run("fusermount3", ["-u", "-z", mount.mountPoint]);
            reader.kill("SIGKILL");
          }
          await until("the daemon is gone", () => mount.daemonPids().length === 0, ENDING_MS);
          expect(mount.isMounted()).toBe(false);
          expect(await reader.end()).not.toBe(0);
        });
      });
    },
  );
});
