// tsimgfs bitmap beside qemu-img bitmap: the same changes of two copies leave the same bitmaps.

import { copyFile, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { crashAfter } from "../support/crash-after.ts";
import { asRecord } from "../support/json.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const NAMES = ["one", "two", "three"] as const;

const KINDS = [
  { name: "64k", options: {} },
  { name: "512", options: { cluster_size: 512 } },
  { name: "extended L2", options: { extended_l2: "on" } },
  { name: "a long backing name", options: {}, backing: `${"x".repeat(200)}.raw` },
] as const;

function randomArgs(random: Random): string[] {
  const name = random.pick(NAMES);
  const other = random.pick(NAMES);
  const actions: readonly [readonly string[], ...(readonly string[])[]] = [
    ["--add"],
    ["--add", "-g", random.pick(["512", "4k", "2M"])],
    ["--add", "--disable"],
    ["--remove"],
    ["--clear"],
    ["--disable"],
    ["--enable"],
    ["--merge", other],
    ["--clear", "--merge", other, "--disable"],
  ];
  return [...random.pick(actions), name];
}

/** The name of a bitmap comes after that of the image. */
function argsFor(image: string, args: readonly string[]): string[] {
  return ["bitmap", ...args.slice(0, -1), image, args.at(-1) ?? ""];
}

async function writeBoth(random: Random, image: string, copy: string): Promise<void> {
  const command = `write -q ${65536 * random.below(60)} ${512 * random.between(1, 200)}`;
  await qemuIo(image, "qcow2", [command]);
  await qemuIo(copy, "qcow2", [command]);
}

/** Changes two copies of an image by tsimgfs and by qemu-img, which must do the same. */
async function changeBoth(
  args: readonly string[],
  image: string,
  copy: string,
  step: number,
): Promise<void> {
  const ours = await attemptTsimgfs(argsFor(image, args));
  const theirs = await attempt("qemu-img", argsFor(copy, args));
  const label = `${step}: ${args.join(" ")}: ${ours.stderr}${theirs.stderr}`;
  expect(ours.status, label).toBe(theirs.status);
  // After a refusal, QEMU has done what came before.
  if (theirs.status !== 0) await copyFile(image, copy);
  expect((await readBitmaps(image)) ?? [], label).toEqual((await readBitmaps(copy)) ?? []);
}

describe.each(KINDS)("tsimgfs bitmap on an image with $name", (kind) => {
  it("does what qemu-img does", async () => {
    await withScratch("bitmap", async (directory) => {
      const random = new Random(`bitmap ${kind.name}`);
      const [image, copy] = [join(directory, "ours.qcow2"), join(directory, "theirs.qcow2")];
      const size = 4 * MIB;
      const backing = "backing" in kind ? kind.backing : undefined;
      if (backing !== undefined) await createImage(join(directory, backing), "raw", { size });
      await createImage(image, "qcow2", {
        size,
        options: kind.options,
        ...(backing === undefined ? {} : { backing: { file: backing, format: "raw" } }),
      });
      await copyFile(image, copy);
      for (let step = 0; step < byScale(9, 200); step++) {
        if (step % 6 === 5) await writeBoth(random, image, copy);
        await changeBoth(randomArgs(random), image, copy, step);
      }
      await expectClean(image);
      expect(asRecord(await imageInfo([image]))["backing-filename"]).toBe(backing);
    });
  });
});

describe("tsimgfs bitmap", () => {
  it("merges bitmaps of another image", async () => {
    await withScratch("bitmap", async (directory) => {
      const [image, other] = [join(directory, "one.qcow2"), join(directory, "two.qcow2")];
      for (const path of [image, other]) {
        await createImage(path, "qcow2", { size: 4 * MIB });
        await run("qemu-img", ["bitmap", "--add", "-g", "64k", path, "seen"]);
      }
      await qemuIo(other, "qcow2", ["write -q 1M 100k"]);
      const from = ["-b", other, "-F", "qcow2"];
      await tsimgfs(["bitmap", "--merge", "seen", ...from, image, "seen"]);
      await tsimgfs(["bitmap", "--add", "-g", "1M", "--merge", "seen", ...from, image, "far"]);
      expect(await readBitmaps(image)).toMatchObject([{ set: [16, 17] }, { set: [1] }]);
      await expectClean(image);
    });
  });

  it("shows them in info as qemu-img does", async () => {
    await withScratch("bitmap", async (directory) => {
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await tsimgfs(["bitmap", "--add", image, "größe"]);
      await tsimgfs(["bitmap", "--add", "--disable", "-g", "512", image, "b"]);
      const { stdout } = await tsimgfs(["info", "--output", "json", image]);
      const of = (info: unknown): unknown =>
        asRecord(asRecord(asRecord(info)["format-specific"])["data"])["bitmaps"];
      expect(of(JSON.parse(stdout))).toEqual(of(await imageInfo([image])));
    });
  });

  it("does not take metadata for free where refcounts are lost", async () => {
    await withScratch("bitmap", async (directory) => {
      const image = join(directory, "image.qcow2");
      for (const args of [
        ["bitmap", "--add", image, "new"],
        ["resize", image, "64G"],
      ]) {
        await createImage(image, "qcow2", { size: MIB });
        await qemuIo(image, "qcow2", ["write -q -P 1 0 64k"]);
        // The first refcount block of qemu-img is the third cluster.
        const bytes = await readFile(image);
        await writeFile(image, bytes.fill(0, 2 * 65536, 3 * 65536));
        await expectRefusal(args, ["is free and"]);
        await run("qemu-io", ["-r", "-f", "qcow2", "-c", "read -q -P 1 0 64k", image]);
      }
    });
  });

  it("refuses what it cannot do, in one line, and changes nothing", async () => {
    await withScratch("bitmap", async (directory) => {
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await run("qemu-img", ["bitmap", "--add", image, "torn"]);
      await crashAfter(image, "qcow2", ["write -q 0 64k", "flush"]);
      await run("qemu-img", ["bitmap", "--add", image, "here"]);
      const before = (await run("sha256sum", [image])).stdout;
      const refused = (args: readonly string[], reason: RegExp | string): Promise<void> =>
        expectRefusal(argsFor(image, args), [reason]);
      await refused(["here"], "state one of --add");
      await refused(["--add", "here"], 'add bitmap "here": there is one already');
      await refused(["--remove", "no"], 'remove bitmap "no": there is none');
      await refused(["--clear", "--merge", "no", "here"], 'there is no bitmap "no"');
      await refused(["--enable", "torn"], "it is inconsistent, and can only be removed");
      await refused(["--merge", "torn", "here"], 'bitmap "torn" is inconsistent');
      await refused(["--add", "-g", "100", "new"], "100 is not a power of 2 in 512..2G");
      await refused(["--add", "-g", "4G", "new"], "4G is not a power of 2 in 512..2G");
      await refused(["--clear", "-g", "64k", "here"], "--granularity is for --add");
      await refused(["--clear", "-b", image, "here"], "--source-file is for --merge");
      await refused(["--add", "x".repeat(1024)], "its name has 1024 bytes");
      expect((await run("sha256sum", [image])).stdout).toBe(before);
      await tsimgfs(["bitmap", "--remove", image, "torn"]);
      expect(await readBitmaps(image)).toMatchObject([{ name: "here" }]);
      await expectClean(image);
      const old = join(directory, "old.qcow2");
      await createImage(old, "qcow2", { size: MIB, options: { compat: "0.10" } });
      await expectRefusal(["bitmap", "--add", old, "x"], ["version 2 has no persistent bitmaps"]);
      const none = join(directory, "none.qcow2");
      await createImage(none, "qcow2", { size: 0 });
      await expectRefusal(["bitmap", "--add", none, "x"], ["the disk has 0 bytes"]);
      await expectClean(none);
      const raw = join(directory, "disk.raw");
      await createImage(raw, "raw", { size: MIB });
      await expectRefusal(["bitmap", "--add", raw, "x"], ["only qcow2 has persistent bitmaps"]);
    });
  });
});
