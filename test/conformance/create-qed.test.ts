// `tsimgfs create -f qed` against `qemu-img create -f qed`: the same bytes where both make an image, refusals where QEMU could not open it.

import { copyFile, mkdir, readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createImage, imageInfo, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, RunError, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch, withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, refusalOf, tsimgfs } from "../support/tsimgfs.ts";

const IMAGE = "new.qed";
const IS_ROOT = process.getuid?.() === 0;

const BACKING_FILES = ["base.raw", "base.qcow2", "base.qed"];

let pantry: string;

beforeAll(async () => {
  pantry = await makeScratch("create-qed");
  await run("truncate", ["-s", "3146000", join(pantry, "base.raw")]);
  await createImage(join(pantry, "base.qcow2"), "qcow2", { size: 5 * 2 ** 20 });
  await qemuIo(join(pantry, "base.qcow2"), "qcow2", ["write -q -P 3 1M 64k"]);
  await createImage(join(pantry, "base.qed"), "qed", { size: 2 ** 20 });
});

afterAll(() => rm(pantry, { recursive: true, force: true }));

/** Two directories with the same backing files: one for qemu-img, one for tsimgfs. */
async function withKitchens(
  body: (kitchens: { theirs: string; ours: string }) => Promise<void>,
): Promise<void> {
  await withScratch("create-qed", async (directory) => {
    const kitchens = { theirs: join(directory, "theirs"), ours: join(directory, "ours") };
    for (const path of Object.values(kitchens)) {
      await mkdir(path);
      for (const name of BACKING_FILES) await copyFile(join(pantry, name), join(path, name));
    }
    await body(kitchens);
  });
}

type Case = readonly [title: string, args: readonly string[]];

const titled = (cases: readonly (readonly string[])[]): Case[] =>
  cases.map((args) => [args.join(" "), args]);

/** Makes the image both ways: the same files and words, and an image that QEMU accepts and can write to. */
async function expectSame(args: readonly string[]): Promise<void> {
  await withKitchens(async ({ theirs, ours }) => {
    const command = ["create", "-f", "qed", ...args];
    const reference = await attempt("qemu-img", command, { cwd: theirs });
    const result = await attemptTsimgfs(command, { cwd: ours });
    if (reference.status !== 0) {
      refusalOf(result);
      expect(await readdir(ours)).not.toContain(IMAGE);
      return;
    }
    if (result.status !== 0) throw new RunError("refused, unlike qemu-img", result);
    expect(result.stdout).toBe(reference.stdout);
    await run("cmp", [join(theirs, IMAGE), join(ours, IMAGE)]);
    await run("qemu-img", ["check", "-q", IMAGE], { cwd: ours });
    const size = Number((await info(ours))["virtual-size"]);
    if (size === 0) return;
    for (const cwd of [theirs, ours]) {
      const commands = [`write -P 1 0 512`, `write -P 2 ${size - 512} 512`];
      await run("qemu-io", ["-f", "qed", ...commands.flatMap((each) => ["-c", each]), IMAGE], {
        cwd,
      });
    }
    await run("qemu-img", ["check", "-q", IMAGE], { cwd: ours });
    await run("cmp", [join(theirs, IMAGE), join(ours, IMAGE)]);
  });
}

async function info(directory: string): Promise<Record<string, unknown>> {
  return Object.fromEntries(Object.entries((await imageInfo([join(directory, IMAGE)])) ?? {}));
}

describe("create makes the QED image that qemu-img create makes:", () => {
  it.each(
    titled([
      [IMAGE, "1000000"],
      ...["4096", "8k", "128K", "1M", "64M"].map((size) => [
        ...["-o", `cluster_size=${size},table_size=2`],
        ...[IMAGE, "1000000"],
      ]),
      ...["2", "4", "8", "16"].map((size) => ["-o", `table_size=${size}`, IMAGE, "1000000"]),
      ["-o", "cluster_size=4k,table_size=16", IMAGE, "1M"],
      ["-o", "cluster_size=2M,table_size=8", IMAGE, "1M"],
      ...["0", "1", "511", "512", "513", "1.5M", "5G", "64T"].map((size) => [IMAGE, size]),
      ["-o", "cluster_size=4k,table_size=2", IMAGE, "4G"],
      ["-b", "base.raw", "-F", "raw", IMAGE],
      ["-b", "base.qcow2", "-F", "qcow2", IMAGE],
      ["-b", "base.qed", "-F", "qed", IMAGE, "8M"],
      ["-b", "base.raw", "-F", "raw", "-o", "cluster_size=4k", IMAGE, "1M"],
      ["-o", "backing_file=base.qcow2,backing_fmt=qcow2,table_size=16", IMAGE],
    ]),
  )("%s", async (_title, args) => expectSame(args));

  it("combinations at random", async () => {
    const random = new Random("create qed");
    for (let round = 0; round < byScale(3, 100); round++) {
      const cluster = 2 ** random.between(11, 27);
      const table = random.pick([2, 4, 8, 16, 5]);
      const size = random.below(2 ** random.between(10, 50));
      await expectSame(["-o", `cluster_size=${cluster},table_size=${table}`, IMAGE, String(size)]);
    }
  });
});

describe("create refuses, as qemu-img create does:", () => {
  it.each(
    titled([
      ...["70368744178176", "7E", "x", "-1"].map((size) => [IMAGE, size]),
      ["-o", "cluster_size=4k,table_size=2", IMAGE, "4294967808"],
      ...[
        ...["1000", "2048", "0", "128M", "65537"].map((size) => `cluster_size=${size}`),
        ...["0", "3", "32", "-1", "x"].map((size) => `table_size=${size}`),
        ...["cluster_size=64M,table_size=16", "cluster_size=4M,table_size=8"],
        ...["preallocation=metadata", "compat=1.1", "data_file=x", "table_size"],
      ].map((list) => ["-o", list, IMAGE, "1M"]),
      ["-b", "none.raw", "-F", "raw", IMAGE],
      ["-b", "base.raw", IMAGE],
      [IMAGE],
    ]),
  )("%s", async (_title, args) => {
    await withKitchens(async ({ theirs, ours }) => {
      const command = ["create", "-f", "qed", ...args];
      expect((await attempt("qemu-img", command, { cwd: theirs })).status).toBe(1);
      refusalOf(await attemptTsimgfs(command, { cwd: ours }));
      expect(await readdir(ours)).not.toContain(IMAGE);
    });
  });
});

describe("create of QED images", () => {
  it("refuses what qemu-img makes and then cannot open: tables of one cluster", async () => {
    await withKitchens(async ({ theirs, ours }) => {
      const args = ["create", "-f", "qed", "-o", "table_size=1", IMAGE, "1M"];
      await run("qemu-img", args, { cwd: theirs });
      expect((await attempt("qemu-img", ["info", IMAGE], { cwd: theirs })).status).toBe(1);
      await expectRefusal(args, [/new\.qed: table_size 1 is not a power of two in 2\.\.16/], {
        cwd: ours,
      });
      expect(await readdir(ours)).not.toContain(IMAGE);
    });
  });

  it("says what the limit is", async () => {
    await withKitchens(async ({ ours }) => {
      await expectRefusal(
        ["create", "-f", "qed", IMAGE, "65T"],
        [/new\.qed: size 71468255805440 is above .* 70368744177664 bytes/],
        { cwd: ours },
      );
      await expectRefusal(
        ["create", "-f", "qed", "-o", "cluster_size=64M", IMAGE, "1M"],
        [/new\.qed: tables .* 2\^76 bytes.* below 2\^64/],
        { cwd: ours },
      );
    });
  });

  it("stores names of any length that fits the header", async () => {
    await withKitchens(async ({ theirs, ours }) => {
      for (const [length, cluster] of [
        [1, 4096],
        [448, 4096],
        [449, 65536],
        [4032, 4096],
        [4095, 8192],
      ]) {
        const name = "ä".padEnd(Number(length) - 1, "b").slice(length === 1 ? 1 : 0) || "a";
        const list = ["-o", `cluster_size=${cluster}`, IMAGE, "1M"];
        const args = ["create", "-f", "qed", "-u", "-b", name, "-F", "raw", ...list];
        await tsimgfs(args, { cwd: ours });
        await run("qemu-img", args, { cwd: theirs });
        await run("cmp", [join(theirs, IMAGE), join(ours, IMAGE)]);
        expect((await info(ours))["backing-filename"]).toBe(name);
      }
      for (const [length, cluster, limit] of [
        [4033, 4096, 4032],
        [4096, 65536, 4095],
      ]) {
        const list = ["-o", `cluster_size=${cluster}`, IMAGE, "1M"];
        const name = "b".repeat(Number(length));
        await expectRefusal(
          ["create", "-f", "qed", "-u", "-b", name, "-F", "raw", ...list],
          [new RegExp(`name has ${length} bytes, the limit is ${limit}$`)],
          { cwd: ours },
        );
      }
    });
  });

  it("warns that the format of a backing file is not stored, unless it is raw", async () => {
    await withKitchens(async ({ ours }) => {
      const make = (format: string) =>
        tsimgfs(["create", "-f", "qed", "-b", `base.${format}`, "-F", format, IMAGE], {
          cwd: ours,
        });
      expect((await make("raw")).stderr).toBe("");
      expect((await info(ours))["backing-filename-format"]).toBe("raw");
      const { stderr } = await make("qcow2");
      expect(stderr).toMatch(/^tsimgfs: new\.qed: warning: QED cannot state .* qcow2[^\n]*\n$/);
      expect((await info(ours))["backing-filename-format"]).toBeUndefined();
      // QEMU finds out, too.
      expect(await imageMap([join(ours, IMAGE)])).toContainEqual(
        expect.objectContaining({ start: 2 ** 20, length: 65536, depth: 1, data: true }),
      );
    });
  });

  it("loses what was there before, and leaves an image that is in its own chain", async () => {
    await withKitchens(async ({ ours }) => {
      const path = join(ours, IMAGE);
      await writeFile(path, new Random("old").bytes(1_000_000));
      await tsimgfs(["create", "-q", "-f", "qed", path, "1M"]);
      expect((await stat(path)).size).toBe(5 * 65536);
      await run("qemu-img", ["check", "-q", path]);
      await run("cmp", [`--bytes=${4 * 65536}`, `--ignore-initial=65536:0`, path, "/dev/zero"]);
      await expectRefusal(
        ["create", "-f", "qed", "-b", path, "-F", "qed", path],
        [/is in its own backing chain/],
      );
      await run("qemu-img", ["check", "-q", path]);
    });
  });

  it.skipIf(!IS_ROOT)("refuses devices: a QED image grows at its end", async () => {
    await withKitchens(async ({ ours }) => {
      const file = join(ours, "device.img");
      await writeFile(file, new Random("device").bytes(8 * 2 ** 20));
      const { stdout } = await run("losetup", ["--find", "--show", file]);
      const device = stdout.trim();
      try {
        await expectRefusal(["create", "-f", "qed", device, "1M"], [/is a device, and a QED/]);
      } finally {
        await run("losetup", ["--detach", device]);
      }
      expect((await run("head", ["-c", "512", file])).stdout).not.toContain("QED");
    });
  });
});
