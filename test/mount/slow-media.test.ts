// Images on a slow medium: a file system of ours answers each read of the image late, or not until it is told to.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asRecord, numberIn } from "../support/json.ts";
import { run, until } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import type { SlowDirectory } from "../support/slow-files.ts";
import {
  holdStuck,
  IMAGE,
  type SlowKind,
  stuckReaderArgs,
  THREADS,
  WRITTEN,
  withSlowMount,
  writeDurably,
  writerArgs,
} from "../support/slow-mount.ts";
import { casesOfTransport, itNeeds } from "../support/transport.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;
const DELAY_MS = 20;
/** Of 16 readers: each also spends time that is not a read of the image. */
const AT_ONCE = 12;
/** What others read ends so far before what is stuck that the host does not read ahead into it. */
const READ_END = 6 * MIB;

/** The daemon waits for half a minute. */
const ENDING_MS = 90_000;

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

/** Where the table is that the first entry of the L1 table refers to. Source: qcow2 specification. */
async function firstL2Table(image: string): Promise<number> {
  const bytes = await readFile(image);
  const l1Table = Number(bytes.readBigUInt64BE(40));
  return Number(bytes.readBigUInt64BE(l1Table) & 0x00ff_ffff_ffff_fe00n);
}

/** Calls `body` while a process reads what has no answer. */
async function withStuckReader(
  slow: SlowDirectory,
  kind: SlowKind,
  device: string,
  body: () => Promise<void>,
): Promise<void> {
  await holdStuck(slow, kind);
  await withProgram("dd", stuckReaderArgs(device), async (reader) => {
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
    await withSlowMount(kind, { args }, async (slow, mount, image) => {
      slow.tell({ kind: "delay", ms: DELAY_MS, calls: "reads" });
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
    await withSlowMount(kind, { args }, async (slow, mount, image) => {
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

  itNeeds("threads")("is asked for a table once, however many wait for it", async () => {
    await withSlowMount("image", { args: ["-r"] }, async (slow, mount, image, path) => {
      const start = await firstL2Table(path);
      slow.tell({ kind: "watch", name: IMAGE, start, end: start + 4096 });
      slow.tell({ kind: "delay", ms: 1000, calls: "reads" });
      const reads = { processes: THREADS, reads: 1, end: WRITTEN };
      await readRandomly(mount.device(image), reads);
      expect((await slow.report()).watched).toBe(1);
      // Several threads asked for it, and the host let them wait for the same pages.
      const { io } = asRecord(JSON.parse(await readFile(mount.stats(image), "utf8")));
      expect(numberIn(asRecord(io), "table-cache-misses")).toBeGreaterThan(1);
    });
  });

  it.each(ENDS)(
    "that never answers does not keep the daemon: $args $how",
    async ({ args, how }) => {
      await withSlowMount("image", { args }, async (slow, mount, image) => {
        await holdStuck(slow, "image");
        await withProgram("dd", stuckReaderArgs(mount.device(image)), async (reader) => {
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

  itNeeds("threads")("tells what it can while writers have no answer", async () => {
    await withScratch("log", async (directory) => {
      const log = join(directory, "log");
      await withSlowMount("image", { args: ["--log-file", log] }, async (slow, mount, image) => {
        const device = mount.device(image);
        const writer = (offset: number): string[] => writerArgs(device, offset, "nocreat");
        const stats = async () => asRecord(JSON.parse(await readFile(mount.stats(image), "utf8")));
        const isLogged = async (line: RegExp) => line.test(await readFile(log, "utf8"));
        slow.tell({ kind: "freeze", calls: "changes" });
        // In place, sharing the lock of the image; and to a new place, to exclude all others.
        await withProgram("dd", writer(0), async (first) => {
          await until("a write has no answer", async () => (await slow.report()).held > 0);
          await withProgram("dd", writer(WRITTEN + MIB), async (second) => {
            await until("it is seen", () => isLogged(/gives no answer/), 60_000);
            const { io, ...others } = await stats();
            expect(asRecord(io)["operations"]).toBeDefined();
            const error = expect.stringContaining("gives no answer");
            expect(others).toMatchObject({ format: "qcow2", guest: { error } });
            expect(await readFile(join(mount.mountPoint, "metrics"), "utf8")).toContain("# EOF");
            slow.tell({ kind: "release" });
            for (const each of [first, second]) expect(await each.end()).toBe(0);
          });
        });
        await until("it is seen", () => isLogged(/answers again/), 60_000);
        expect(asRecord((await stats())["alloc-info"])["error"]).toBeUndefined();
      });
    });
  });
});
