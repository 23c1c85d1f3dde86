// tsimgfs convert --bitmaps beside qemu-img convert --bitmaps: the same bitmaps, bit for bit.

import { copyFile, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const EXTENSION_BITMAPS = 0x2385_2875;

/** An image with bitmaps of several granularities, some disabled, in which something is marked. */
async function makeSource(directory: string, name = "source.qcow2"): Promise<string> {
  const path = join(directory, name);
  await createImage(path, "qcow2", { size: 8 * MIB + 1536 });
  const random = new Random(`bitmaps of ${name}`);
  const write = async (): Promise<void> => {
    const commands = Array.from({ length: 4 }, () => {
      return `write -q ${512 * random.below(16_000)} ${512 * random.between(1, 300)}`;
    });
    await qemuIo(path, "qcow2", commands);
  };
  await run("qemu-img", ["bitmap", "--add", "-g", "512", path, "fine"]);
  await run("qemu-img", ["bitmap", "--add", path, "no longer"]);
  await write();
  await run("qemu-img", ["bitmap", "--disable", path, "no longer"]);
  await run("qemu-img", ["bitmap", "--add", "-g", "1M", path, "coarse, ‘größer’"]);
  await write();
  await qemuIo(path, "qcow2", ["write -q 8389120 1024"]);
  await run("qemu-img", ["bitmap", "--add", "--disable", path, "empty"]);
  return path;
}

/** Marks the first bitmap of an image as in use: whoever wrote to it has not stored it. */
async function breakFirstBitmap(path: string): Promise<void> {
  const file = await readFile(path);
  for (let at = file.readUInt32BE(100); ; ) {
    const [type, length] = [file.readUInt32BE(at), file.readUInt32BE(at + 4)];
    if (type === EXTENSION_BITMAPS) {
      const flags = Number(file.readBigUInt64BE(at + 24)) + 12;
      file.writeUInt32BE(file.readUInt32BE(flags) | 1, flags);
      break;
    }
    if (type === 0) throw new Error(`${path} has no bitmaps`);
    at += 8 + Math.ceil(length / 8) * 8;
  }
  await writeFile(path, file);
}

describe("tsimgfs convert --bitmaps", () => {
  it.each([
    { name: "plain", args: [] },
    { name: "compressed 4k clusters", args: ["-c", "-o", "cluster_size=4k"] },
    { name: "sub-clusters", args: ["-o", "extended_l2=on"] },
    { name: "a snapshot", args: ["-l", "then"] },
  ])("copies the same bits as qemu-img: $name", async ({ args }) => {
    await withScratch("convert-bitmaps", async (directory) => {
      const source = await makeSource(directory);
      await run("qemu-img", ["snapshot", "-c", "then", source]);
      const [ours, theirs] = [join(directory, "ours"), join(directory, "theirs")];
      const all = ["convert", "--bitmaps", "-O", "qcow2", ...args, source];
      await tsimgfs([...all, ours]);
      await run("qemu-img", [...all, theirs]);
      const bitmaps = await readBitmaps(ours);
      expect(bitmaps).toEqual(await readBitmaps(theirs));
      expect(bitmaps?.map(({ auto, set }) => [auto, set.length > 0])).toEqual([
        [true, true],
        [false, true],
        [true, true],
        [false, false],
      ]);
      await expectClean(ours);
      await run("qemu-img", ["compare", ours, theirs]);
    });
  });

  it("adds them to those of an image that is there", async () => {
    await withScratch("convert-bitmaps", async (directory) => {
      const source = await makeSource(directory);
      const ours = join(directory, "ours");
      const theirs = join(directory, "theirs");
      await createImage(ours, "qcow2", { size: 8 * MIB + 1536 });
      await run("qemu-img", ["bitmap", "--add", ours, "its own"]);
      await copyFile(ours, theirs);
      const all = ["convert", "--bitmaps", "-n", "-O", "qcow2", source];
      await tsimgfs([...all, ours]);
      await run("qemu-img", [...all, theirs]);
      const names = (await readBitmaps(ours))?.map(({ name }) => name);
      expect(names?.toSorted()).toEqual(
        (await readBitmaps(theirs))?.map(({ name }) => name).toSorted(),
      );
      for (const bitmap of (await readBitmaps(source)) ?? []) {
        expect(await readBitmaps(ours)).toContainEqual(bitmap);
      }
      await expectClean(ours);
      await run("qemu-img", ["compare", ours, theirs]);
    });
  });

  it("leaves out what is inconsistent only if that is asked for", async () => {
    await withScratch("convert-bitmaps", async (directory) => {
      const source = await makeSource(directory);
      await breakFirstBitmap(source);
      const [ours, theirs] = [join(directory, "ours"), join(directory, "theirs")];
      const all = ["convert", "--bitmaps", "-O", "qcow2"];
      expect((await attempt("qemu-img", [...all, source, theirs])).status).toBe(1);
      await expectRefusal([...all, source, ours], [/bitmap "fine" is inconsistent/]);
      expect((await attempt("test", ["-e", ours])).status).toBe(1);
      const skipping = [...all, "--skip-broken-bitmaps", source];
      const { stderr } = await tsimgfs([...skipping, ours]);
      expect(stderr).toMatch(/source.qcow2: warning: bitmap "fine" is inconsistent, and is left/);
      await run("qemu-img", [...skipping, theirs]);
      expect(await readBitmaps(ours)).toEqual(await readBitmaps(theirs));
    });
  });

  it("copies none of a backing file, and refuses what can have none before anything is lost", async () => {
    await withScratch("convert-bitmaps", async (directory) => {
      const source = await makeSource(directory);
      const overlay = join(directory, "overlay.qcow2");
      const old = join(directory, "old.qcow2");
      const target = join(directory, "target");
      await createImage(overlay, "qcow2", { backing: { file: source, format: "qcow2" } });
      await tsimgfs(["convert", "--bitmaps", "-O", "qcow2", overlay, target]);
      expect((await readBitmaps(target)) ?? []).toEqual([]);
      await createImage(old, "qcow2", { size: MIB, options: { compat: "0.10" } });
      await createImage(target, "qcow2", { size: 16 * MIB });
      const before = await readFile(target);
      const refusals: readonly (readonly [readonly string[], RegExp])[] = [
        [["--bitmaps", source, target], /only qcow2 of compat 1.1 has bitmaps/],
        [["--bitmaps", "-O", "qed", source, target], /only qcow2 of compat 1.1/],
        [["--bitmaps", "-O", "qcow2", "-o", "compat=0.10", source, target], /only qcow2 of compat/],
        [["--bitmaps", "-O", "qcow2", old, target], /old.qcow2: can have no bitmaps/],
        [["--bitmaps", "-O", "qcow2", source, source, target], /several images/],
        [["--bitmaps", "-n", "-O", "qcow2", source, target], /its disk has 16777216 bytes/],
        [["--bitmaps", "-n", "-O", "qcow2", old, source], /old.qcow2: can have no bitmaps/],
        [["--skip-broken-bitmaps", "-O", "qcow2", source, target], /is for --bitmaps only/],
      ];
      for (const [args, reason] of refusals) await expectRefusal(["convert", ...args], [reason]);
      expect((await readFile(target)).equals(before)).toBe(true);
      const same = join(directory, "same.qcow2");
      await copyFile(source, same);
      const again = ["convert", "--bitmaps", "-n", "-O", "qcow2", source, same];
      await expectRefusal(again, [/has a bitmap "fine" already/]);
      expect((await attempt("qemu-img", again)).status).toBe(1);
    });
  });

  it("does not write what a bitmap with a damaged table says", async () => {
    await withScratch("convert-bitmaps", async (directory) => {
      const source = await makeSource(directory);
      const file = await readFile(source);
      let at = file.readUInt32BE(100);
      while (file.readUInt32BE(at) !== EXTENSION_BITMAPS) {
        at += 8 + Math.ceil(file.readUInt32BE(at + 4) / 8) * 8;
      }
      const table = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(at + 24))));
      file.writeBigUInt64BE(0x123n << 9n, table);
      await writeFile(source, file);
      const target = join(directory, "target");
      const result = await attemptTsimgfs(["convert", "--bitmaps", "-O", "qcow2", source, target]);
      expect(result.status).toBe(1);
      expect(result.stderr).toMatch(
        /^tsimgfs: [^\n]*source.qcow2: bitmap "fine": [^\n]*damaged\n$/,
      );
      expect((await attempt("test", ["-e", target])).status).toBe(1);
      await rm(source);
    });
  });
});
