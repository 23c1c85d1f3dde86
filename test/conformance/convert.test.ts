// tsimgfs convert beside qemu-img convert: the same disks, allocated in the same places.

import { copyFile, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { CONVERT_SOURCES, expectSameDisk, makeConvertSource } from "../support/convert-sources.ts";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { createImage, type ImageFormat, imageInfo, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run, until } from "../support/run.ts";
import { LONG } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage } from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

interface Target {
  readonly name: string;
  readonly format: ImageFormat;
  readonly args: readonly string[];
}

const TARGETS: readonly Target[] = [
  { name: "raw", format: "raw", args: [] },
  { name: "qcow2", format: "qcow2", args: [] },
  { name: "raw, zeros of 64k", format: "raw", args: ["-S", "64k"] },
  { name: "4k clusters", format: "qcow2", args: ["-o", "cluster_size=4k,compat=0.10"] },
  { name: "sub-clusters", format: "qcow2", args: ["-o", "extended_l2=on"] },
  { name: "QED", format: "qed", args: [] },
  { name: "zlib", format: "qcow2", args: ["-c"] },
  {
    name: "zstd of 4k",
    format: "qcow2",
    args: ["-c", "-o", "compression_type=zstd,cluster_size=4k"],
  },
  { name: "nothing left out", format: "qcow2", args: ["-S", "0"] },
];

const PAIRS = CONVERT_SOURCES.flatMap((source, row) =>
  TARGETS.flatMap((target, column) =>
    LONG || (row + column) % 4 === 0
      ? [{ source, target, from: source.name, to: target.name }]
      : [],
  ),
);

/** What is allocated where, without the host offsets, and adjacent runs alike joined. */
async function allocationOf(path: string, format: ImageFormat): Promise<string[]> {
  const map = await imageMap(["-f", format, path]);
  if (!Array.isArray(map)) throw new Error("not a map");
  const runs: { start: number; what: string }[] = [];
  for (const entry of map.map(asRecord)) {
    // Of an allocated cluster, a part may be a hole of the host.
    const kind = entry["data"] === true ? "data" : `zero ${entry["zero"]}`;
    const what = `depth ${entry["depth"]} ${kind}`;
    if (runs.at(-1)?.what !== what) runs.push({ start: Number(entry["start"]), what });
  }
  return runs.map(({ start, what }) => `${start}: ${what}`);
}

async function convertBoth(
  source: readonly [path: string, format: ImageFormat],
  target: Target,
  directory: string,
  extra: readonly string[] = [],
): Promise<{ ours: string; theirs: string }> {
  const ours = join(directory, "ours");
  const theirs = join(directory, "theirs");
  const args = ["-f", source[1], "-O", target.format, ...target.args, ...extra, source[0]];
  await tsimgfs(["convert", ...args, ours]);
  await run("qemu-img", ["convert", ...args, theirs]);
  return { ours, theirs };
}

describe("tsimgfs convert", () => {
  it.each(PAIRS)("of $from to $to is as qemu-img convert", async ({ source, target }) => {
    await withScratch("convert", async (directory) => {
      const path = await makeConvertSource(directory, source);
      const { ours, theirs } = await convertBoth([path, source.format], target, directory);
      await expectSameDisk([ours, target.format], [theirs, target.format]);
      expect(await allocationOf(ours, target.format)).toEqual(
        await allocationOf(theirs, target.format),
      );
      if (target.format === "qcow2") expect((await checkImage(ours)).verdict).toBe("clean");
    });
  });

  it("copies only what the backing file lacks with -B", async () => {
    await withScratch("convert", async (directory) => {
      const [, , , , source] = CONVERT_SOURCES;
      if (source === undefined) throw new Error("no such source");
      const path = await makeConvertSource(directory, source);
      const target = { name: "overlay", format: "qcow2", args: [] } as const;
      const backing = ["-B", join(directory, "base.qcow2"), "-F", "qcow2"];
      const { ours, theirs } = await convertBoth([path, "qcow2"], target, directory, backing);
      await expectSameDisk([ours, "qcow2"], [path, "qcow2"]);
      // Zeros over zeros need not be said.
      const dataOf = async (image: string): Promise<string[]> =>
        (await allocationOf(image, "qcow2")).filter((line) => line.endsWith("depth 0 data"));
      expect(await dataOf(ours)).toEqual(await dataOf(theirs));
    });
  });

  it("copies snapshots, by name and by ID", async () => {
    await withScratch("convert", async (directory) => {
      const path = join(directory, "source.qcow2");
      await createImage(path, "qcow2", { size: 2 ** 20 });
      await qemuIo(path, "qcow2", ["write -P 1 0 300k"]);
      await run("qemu-img", ["snapshot", "-c", "first one", path]);
      await qemuIo(path, "qcow2", ["write -P 2 100k 300k"]);
      const target = { name: "raw", format: "raw", args: [] } as const;
      for (const snapshot of ["first one", "1"]) {
        const { ours, theirs } = await convertBoth([path, "qcow2"], target, directory, [
          "-l",
          snapshot,
        ]);
        await run("cmp", [ours, theirs]);
      }
      const missing = ["convert", "-l", "second", path, join(directory, "missing")];
      await expectRefusal(missing, [/has no snapshot "second"/]);
    });
  });

  it("puts several disks one behind the other", async () => {
    await withScratch("convert", async (directory) => {
      const first = join(directory, "first.raw");
      const second = join(directory, "second.qcow2");
      const data = Buffer.alloc(100 * 512 + 17, 9);
      await writeFile(first, data);
      await createImage(second, "qcow2", { size: 3 * 2 ** 20 + 512 });
      await qemuIo(second, "qcow2", ["write -P 3 0 1M", "write -P 4 3M 512"]);
      for (const args of [[], ["-O", "qcow2", "-c"]]) {
        await tsimgfs(["convert", ...args, first, second, join(directory, "ours")]);
        await run("qemu-img", ["convert", ...args, first, second, join(directory, "theirs")]);
        await run("qemu-img", ["compare", join(directory, "ours"), join(directory, "theirs")]);
      }
    });
  });

  it("writes into an image that is there with -n, and over its old contents", async () => {
    await withScratch("convert", async (directory) => {
      const source = join(directory, "source.raw");
      await createImage(source, "raw", { size: 2 ** 20 });
      await qemuIo(source, "raw", ["write -P 1 64k 64k"]);
      for (const format of ["raw", "qcow2", "qed"] as const) {
        const ours = join(directory, `ours.${format}`);
        const theirs = join(directory, `theirs.${format}`);
        await createImage(ours, format, { size: 2 ** 21 });
        await qemuIo(ours, format, ["write -P 9 0 2M"]);
        await copyFile(ours, theirs);
        await tsimgfs(["convert", "-n", "-O", format, source, ours]);
        await run("qemu-img", ["convert", "-n", "-O", format, source, theirs]);
        await expectSameDisk([ours, format], [theirs, format]);
        await qemuIo(ours, format, ["read -P 0 0 64k", "read -P 9 1M 1M"]);
        await qemuIo(ours, format, ["write -P 9 0 64k"]);
        await tsimgfs(["convert", "-n", "--target-is-zero", "-O", format, source, ours]);
        await qemuIo(ours, format, ["read -P 9 0 64k", "read -P 1 64k 64k"]);
      }
    });
  });

  it("refuses what it cannot do, in one line, and leaves nothing", async () => {
    await withScratch("convert", async (directory) => {
      const source = join(directory, "source.qcow2");
      const overlay = join(directory, "overlay.qcow2");
      const target = join(directory, "target");
      await createImage(source, "qcow2", { size: 2 ** 20 });
      await createImage(overlay, "qcow2", { backing: { file: source, format: "qcow2" } });
      const before = await readFile(source);
      const refusals: readonly (readonly [readonly string[], RegExp])[] = [
        [["-O", "qcow2", source, source], /is what is read from/],
        [["-O", "qcow2", overlay, source], /is what is read from/],
        [["-n", "-O", "qcow2", overlay, source], /is what is read from/],
        [["-c", source, target], /-c: raw images cannot have compressed clusters/],
        [["-c", "-O", "qcow2", "-o", "preallocation=full", source, target], /-c: .*preallocation/],
        [["--target-is-zero", source, target], /is for -n only/],
        [["-S", "100", source, target], /-S: 100 is not a multiple of 512/],
        [["-B", source, "-O", "qcow2", source, target], /must be stated \(-F\)/],
        [["-B", source, "-F", "qcow2", source, source, target], /several images/],
        [["-l", "x", source, source, target], /several images/],
        [["-O", "qcow2", "-o", "size=512", source, target], /is less than/],
        [[source, join(directory, "no", "target")], /there is no such directory/],
        [[join(directory, "missing"), target], /no such file/],
        [[source], /needs the name of an image/],
        [["-m", "17", source, target], /-m: 17 is not a number in 1..16/],
      ];
      for (const [args, reason] of refusals) await expectRefusal(["convert", ...args], [reason]);
      await createImage(target, "raw", { size: 512 });
      await expectRefusal(["convert", "-n", source, target], [/smaller than the source/]);
      expect((await readFile(source)).equals(before)).toBe(true);
      await rm(target);
    });
  });

  it("overwrites an image, but not one that somebody uses", async () => {
    await withScratch("convert", async (directory) => {
      const source = join(directory, "source.raw");
      const target = join(directory, "target.qcow2");
      await createImage(source, "raw", { size: 2 ** 20 });
      await createImage(target, "qcow2", { size: 2 ** 22 });
      await qemuIo(target, "qcow2", ["write -P 1 0 4M"]);
      const before = await readFile(target);
      await withProgram("qemu-io", ["-f", "qcow2", target], async (program) => {
        program.write("read -q 0 512\n");
        await expect.poll(() => program.output).toContain("qemu-io>");
        const args = ["convert", "-O", "qcow2", source, target];
        await expectRefusal(args, [/target.qcow2: is in use by qemu-io/]);
        program.write("quit\n");
        await program.end();
      });
      expect((await readFile(target)).equals(before)).toBe(true);
      await tsimgfs(["convert", "-O", "qcow2", source, target]);
      expect(asRecord(await imageInfo([target]))["virtual-size"]).toBe(2 ** 20);
      await expectSameDisk([source, "raw"], [target, "qcow2"]);
    });
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)("stops on %s, and removes only what is new", async (signal, status) => {
    await withScratch("convert", async (directory) => {
      const source = join(directory, "source.raw");
      const target = join(directory, "target.qcow2");
      await writeFile(source, new Random("stopped convert").bytes(8 * 2 ** 20));
      const args = [MAIN, "convert", "-O", "qcow2", "-r", "1M"];
      const stop = async (extra: readonly string[]): Promise<string> =>
        withProgram(process.execPath, [...args, ...extra, source, target], async (program) => {
          await until("it has begun", async () => (await allocatedOf(target)) > 2 * 2 ** 20);
          program.kill(signal);
          expect(await program.end()).toBe(status);
          return program.output;
        });
      expect(await stop([])).toMatch(
        /target.qcow2: stopped before the end of 8 MiB; it was removed/,
      );
      expect(await sizeOf(target)).toBe(-1);
      await createImage(target, "qcow2", { size: 8 * 2 ** 20 });
      await qemuIo(target, "qcow2", ["write -P 1 7M 1M"]);
      expect(await stop(["-n"])).toMatch(/stopped before the end of 8 MiB; it is not complete/);
      expect((await checkImage(target)).verdict).toBe("clean");
      await qemuIo(target, "qcow2", ["read -P 1 7M 1M"]);
    });
  });

  it("leaves an image that has leaks at the most when it is killed", async () => {
    await withScratch("convert", async (directory) => {
      const source = join(directory, "source.raw");
      const random = new Random("killed convert");
      await writeFile(source, random.text(24 * 2 ** 20));
      for (const [kill, args] of [["-c"], [], ["-c", "-o", "compression_type=zstd"]].entries()) {
        const target = join(directory, `target-${kill}.qcow2`);
        const all = [MAIN, "convert", "-O", "qcow2", ...args, source, target];
        await withProgram(process.execPath, all, async (program) => {
          await until("it has begun", async () => (await sizeOf(target)) > 0);
          await new Promise((resolve) => setTimeout(resolve, random.between(20, 400)));
          if (program.isRunning) program.kill("SIGKILL");
          await program.end();
        });
        expect((await checkImage(target)).verdict).not.toBe("corrupt");
        await tsimgfs([...all.slice(1)]);
        await expectSameDisk([source, "raw"], [target, "qcow2"]);
      }
    });
  });

  it.each(["raw", "qcow2"] as const)(
    "says that the host is full, and leaves no %s",
    async (format) => {
      await withScratch("convert", async (directory) => {
        const source = join(directory, "source.raw");
        await writeFile(source, new Random("full convert").bytes(12 * 2 ** 20));
        await withTmpfs(6 * 2 ** 20, async (tmpfs) => {
          const target = join(tmpfs.directory, "target");
          await expectRefusal(["convert", "-O", format, source, target], [/ENOSPC/]);
          expect(await sizeOf(target)).toBe(-1);
        });
      });
    },
  );

  it("takes for zeros what cannot be read, with --salvage", async () => {
    await withScratch("convert", async (directory) => {
      const source = join(directory, "source.qcow2");
      await createImage(source, "qcow2", { size: 2 ** 20 });
      await qemuIo(source, "qcow2", ["write -c -P 1 0 64k", "write -P 2 64k 64k"]);
      const bytes = await readFile(source);
      // The compressed stream of the first cluster becomes rubbish.
      const l1 = Number(bytes.readBigUInt64BE(40));
      const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
      const stream = Number(bytes.readBigUInt64BE(l2) & ((1n << 54n) - 1n));
      bytes.fill(0xff, stream, stream + 20);
      await writeFile(source, bytes);
      const target = join(directory, "target.raw");
      const failed = await attemptTsimgfs(["convert", source, target]);
      expect(failed.status).toBe(1);
      expect(failed.stderr).toMatch(/^tsimgfs: [^\n]+\n$/);
      expect((await attempt("test", ["-e", target])).status).toBe(1);
      const { stderr } = await tsimgfs(["convert", "--salvage", source, target]);
      expect(stderr).toMatch(
        /source.qcow2: warning: 512 bytes at 0x0 cannot be read, and become zeros/,
      );
      await qemuIo(target, "raw", ["read -P 0 0 64k", "read -P 2 64k 64k"]);
      const quiet = await tsimgfs(["convert", "-q", "--salvage", source, target]);
      expect(quiet.stderr).toBe("");
    });
  });
});

/** Bytes of a file; -1: there is none. */
async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => undefined))?.size ?? -1;
}

/** Bytes that the host has allocated for a file; 0: there is none. */
async function allocatedOf(path: string): Promise<number> {
  return ((await stat(path).catch(() => undefined))?.blocks ?? 0) * 512;
}
