// How tsimgfs convert reads and writes: copied by the host (-C), and in the cache modes of qemu-img.

import { rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { CONVERT_SOURCES, expectSameDisk, makeConvertSource } from "../support/convert-sources.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { LONG } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const TARGETS = [
  { name: "raw", format: "raw", args: [] },
  { name: "qcow2", format: "qcow2", args: [] },
  { name: "sub-clusters", format: "qcow2", args: ["-o", "extended_l2=on,cluster_size=16k"] },
  { name: "preallocated", format: "qcow2", args: ["-o", "preallocation=metadata"] },
  { name: "QED", format: "qed", args: [] },
] as const;

const PAIRS = CONVERT_SOURCES.flatMap((source, row) =>
  TARGETS.flatMap((target, column) =>
    LONG || (row + column) % 5 === 0
      ? [{ source, target, from: source.name, to: target.name }]
      : [],
  ),
);

describe("tsimgfs convert -C", () => {
  it.each(PAIRS)("of $from to $to shows the same disk", async ({ source, target }) => {
    await withScratch("convert-range", async (directory) => {
      const path = await makeConvertSource(directory, source);
      const ours = join(directory, "ours");
      const args = ["convert", "-C", "-f", source.format, "-O", target.format, ...target.args];
      await tsimgfs([...args, path, ours]);
      await expectSameDisk([ours, target.format], [path, source.format]);
      if (target.format === "qcow2") await expectClean(ours);
    });
  });

  it("copies over what is there, over a backing file, and marks it in bitmaps", async () => {
    await withScratch("convert-range", async (directory) => {
      const source = join(directory, "source.raw");
      await writeFile(source, new Random("copied range").bytes(3 * MIB));
      const target = join(directory, "target.qcow2");
      const base = join(directory, "base.raw");
      await createImage(base, "raw", { size: 3 * MIB });
      await createImage(target, "qcow2", { backing: { file: base, format: "raw" } });
      await qemuIo(target, "qcow2", ["write -q -P 1 100k 1M", "write -q -c -P 2 2M 64k"]);
      await run("qemu-img", ["bitmap", "--add", target, "changes"]);
      await tsimgfs(["convert", "-C", "-n", "-O", "qcow2", source, target]);
      await expectSameDisk([source, "raw"], [target, "qcow2"]);
      await expectClean(target);
      const [bitmap] = (await readBitmaps(target)) ?? [];
      expect(bitmap?.set).toEqual(Array.from({ length: (3 * MIB) / 65536 }, (_, bit) => bit));
    });
  });

  it("is refused with what somebody must read for", async () => {
    await withScratch("convert-range", async (directory) => {
      const source = join(directory, "source.raw");
      const target = join(directory, "target");
      await createImage(source, "raw", { size: MIB });
      const args = [
        ["-C", "-c", "-O", "qcow2"],
        ["-C", "-S", "4k"],
        ["-C", "-S", "0"],
        ["-C", "--salvage"],
      ];
      for (const options of args) {
        await expectRefusal(["convert", ...options, source, target], [/^tsimgfs: -C: cannot be/]);
        const theirs = await attempt("qemu-img", ["convert", ...options, source, target]);
        expect(theirs.status).toBe(1);
      }
    });
  });
});

describe("cache modes", () => {
  it.each(["none", "off", "writeback", "unsafe", "directsync", "writethrough"])(
    "%s: the same bytes, also of an odd length",
    async (mode) => {
      await withScratch("convert-cache", async (directory) => {
        const source = join(directory, "source.raw");
        await writeFile(source, new Random(`cache ${mode}`).bytes(MIB + 512 * 3));
        for (const args of [[], ["-O", "qcow2", "-o", "cluster_size=512"], ["-c", "-O", "qcow2"]]) {
          const target = join(directory, "target");
          await tsimgfs(["convert", "-t", mode, "-T", mode, ...args, source, target]);
          const format = args.length === 0 ? "raw" : "qcow2";
          await expectSameDisk([source, "raw"], [target, format]);
          await tsimgfs(["compare", "-f", "raw", "-F", format, "-T", mode, source, target]);
        }
        await tsimgfs(["bench", "-q", "-c", "20", "-s", "4k", "-w", "-t", mode, source]);
      });
    },
  );

  it("that there are not are refused as qemu-img refuses them", async () => {
    await withScratch("convert-cache", async (directory) => {
      const image = join(directory, "image.qcow2");
      const target = join(directory, "target");
      await createImage(image, "qcow2", { size: MIB });
      for (const words of [
        ["convert", "-t", "fast", image, target],
        ["convert", "-T", "fast", image, target],
        ["compare", "-T", "fast", image, image],
        ["commit", "-t", "fast", image],
        ["rebase", "-u", "-t", "fast", "-b", "", image],
        ["rebase", "-u", "-T", "fast", "-b", "", image],
        ["bench", "-t", "fast", image],
      ]) {
        const ours = await attemptTsimgfs(words);
        expect(await stat(target).catch(() => undefined), ours.commandLine).toBe(undefined);
        const theirs = await attempt("qemu-img", words);
        await rm(target, { force: true });
        expect(ours.status, ours.commandLine).toBe(theirs.status);
        expect(ours.stderr).toMatch(/^tsimgfs: -[tT]: fast is not one of [^\n]+\n$/);
      }
    });
  });

  it("commit and rebase have the same effect in each", async () => {
    await withScratch("convert-cache", async (directory) => {
      for (const mode of ["none", "writethrough", "unsafe"]) {
        const base = join(directory, `base-${mode}`);
        const image = join(directory, `image-${mode}.qcow2`);
        const other = join(directory, `other-${mode}`);
        await createImage(base, "raw", { size: MIB });
        await createImage(other, "raw", { size: MIB });
        await qemuIo(other, "raw", ["write -q -P 3 500k 100k"]);
        await createImage(image, "qcow2", { backing: { file: base, format: "raw" } });
        await qemuIo(image, "qcow2", ["write -q -P 5 10k 200k"]);
        const rebase = ["-t", mode, "-T", mode, "-b", other, "-F", "raw", image];
        await tsimgfs(["rebase", ...rebase]);
        await qemuIo(image, "qcow2", ["read -P 0 500k 100k", "read -P 5 10k 200k"]);
        await tsimgfs(["commit", "-q", "-t", mode, image]);
        await expectSameDisk([other, "raw"], [image, "qcow2"]);
        await qemuIo(other, "raw", ["read -P 0 500k 100k", "read -P 5 10k 200k"]);
      }
    });
  });
});
