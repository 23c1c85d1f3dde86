// Persistent dirty bitmaps: what tsimgfs notes in them is what QEMU notes of the same commands.

import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { crashAfter } from "../support/crash-after.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const SECTOR = 512;

interface BitmapPlan {
  readonly name: string;
  readonly granularity: number;
  readonly disabled?: boolean;
}

const PLANS: readonly BitmapPlan[] = [
  { name: "usual", granularity: 65536 },
  { name: "fine", granularity: 512 },
  { name: "coarse", granularity: 2 * MIB },
  { name: "off", granularity: 4096, disabled: true },
];

const KINDS = [
  { name: "64k", options: {} },
  { name: "512", options: { cluster_size: 512 } },
  { name: "2m", options: { cluster_size: 2 * MIB } },
  { name: "extended L2", options: { extended_l2: "on", cluster_size: 16384 } },
] as const;

async function addBitmaps(path: string): Promise<void> {
  for (const { name, granularity, disabled = false } of PLANS) {
    const state = disabled ? ["--disable"] : [];
    await run("qemu-img", ["bitmap", "--add", ...state, "-g", String(granularity), path, name]);
  }
}

/** Commands that both programs have, at random places. */
function randomCommands(random: Random, size: number, count: number): string[] {
  return Array.from({ length: count }, (_, index) => {
    const length = SECTOR * random.between(1, 300);
    const offset = SECTOR * random.below((size - length) / SECTOR);
    const command = random.pick([`write -P ${index + 1}`, "write -z", "write -z -u"]);
    return `${command} ${offset} ${length}`;
  });
}

async function ours(path: string, commands: readonly string[]): Promise<void> {
  await tsimgfs(["io", ...commands.flatMap((command) => ["-c", command]), path]);
}

describe.each(KINDS)("persistent bitmaps of an image with $name clusters", ({ name, options }) => {
  it("are what QEMU makes them", async () => {
    await withScratch("bitmaps", async (directory) => {
      const random = new Random(`bitmaps ${name}`);
      const [image, copy] = [join(directory, "ours.qcow2"), join(directory, "theirs.qcow2")];
      const size = 9 * MIB - SECTOR;
      await createImage(image, "qcow2", { size, options });
      await addBitmaps(image);
      await copyFile(image, copy);
      for (let session = 0; session < byScale(1, 20); session++) {
        const commands = randomCommands(random, size, 6);
        await ours(image, commands);
        await qemuIo(copy, "qcow2", commands);
        const bitmaps = await readBitmaps(image);
        expect(bitmaps).toEqual(await readBitmaps(copy));
        expect(bitmaps?.map(({ inUse }) => inUse)).toEqual([false, false, false, false]);
        await expectClean(image);
      }
      // Each goes on with what the other left.
      const [first, second] = [
        randomCommands(random, size, 4),
        randomCommands(random, size, 4),
      ] as const;
      await ours(image, first);
      await qemuIo(image, "qcow2", second);
      await qemuIo(copy, "qcow2", [...first, ...second]);
      expect(await readBitmaps(image)).toEqual(await readBitmaps(copy));
    });
  });
});

describe("persistent bitmaps", () => {
  it("are not touched by who reads, or writes nothing", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await addBitmaps(image);
      const before = (await run("sha256sum", [image])).stdout;
      await ours(image, ["read 0 64k", "map", "flush"]);
      expect((await run("sha256sum", [image])).stdout).toBe(before);
    });
  });

  it("note what a discard changes", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { size: 4 * MIB });
      await qemuIo(image, "qcow2", ["write -q 0 3M"]);
      await run("qemu-img", ["bitmap", "--add", image, "changes"]);
      await ours(image, ["discard 1M 256k", "discard 3M 1M"]);
      expect(await readBitmaps(image)).toMatchObject([{ inUse: false, set: [16, 17, 18, 19] }]);
      await expectClean(image);
    });
  });

  it("change their size with the disk as QEMU's do", async () => {
    await withScratch("bitmaps", async (directory) => {
      const [image, copy] = [join(directory, "ours.qcow2"), join(directory, "theirs.qcow2")];
      // Of 512-byte clusters, so that tables get longer and shorter.
      await createImage(image, "qcow2", { size: 3 * MIB, options: { cluster_size: 512 } });
      await addBitmaps(image);
      await qemuIo(image, "qcow2", ["write -q 0 3M"]);
      await run("qemu-img", ["bitmap", "--merge", "fine", image, "off"]);
      await copyFile(image, copy);
      for (const size of [8 * MIB + SECTOR, 8 * MIB, 2 * MIB - SECTOR, 5 * MIB]) {
        const args = ["resize", "--shrink"];
        await tsimgfs([...args, image, String(size)]);
        await run("qemu-img", [...args, "-q", copy, String(size)]);
        expect(await readBitmaps(image), String(size)).toEqual(await readBitmaps(copy));
        await expectClean(image);
      }
    });
  });

  it("that are not consistent stay so, and keep the disk at its size", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await run("qemu-img", ["bitmap", "--add", image, "torn"]);
      await crashAfter(image, "qcow2", ["write -q 0 64k", "flush"]);
      await ours(image, ["write 0 64k"]);
      expect(await readBitmaps(image)).toMatchObject([{ name: "torn", inUse: true }]);
      await expectRefusal(["resize", image, "2M"], [/bitmap "torn" is inconsistent/]);
      expect((await run("qemu-img", ["info", image])).stdout).toContain("in-use");
    });
  });

  it("keep a disk from having no bytes", async () => {
    await withScratch("bitmaps", async (directory) => {
      const image = join(directory, "image.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await run("qemu-img", ["bitmap", "--add", image, "on"]);
      const before = await readBitmaps(image);
      const { status } = await attemptTsimgfs(["io", "-c", "truncate 0", image]);
      expect(status).toBe(1);
      expect(await imageInfo([image])).toMatchObject({ "virtual-size": MIB });
      expect(await readBitmaps(image)).toEqual(before);
      await run("qemu-img", ["bitmap", "--remove", image, "on"]);
      await tsimgfs(["io", "-c", "truncate 0", image]);
      expect(await imageInfo([image])).toMatchObject({ "virtual-size": 0 });
      await expectClean(image);
    });
  });

  it("of a base are kept up by commit, and those of an image by rebase and stream", async () => {
    await withScratch("bitmaps", async (directory) => {
      const [base, image] = [join(directory, "base.qcow2"), join(directory, "top.qcow2")];
      await createImage(base, "qcow2", { size: MIB });
      await qemuIo(base, "qcow2", ["write -q 0 1M"]);
      await run("qemu-img", ["bitmap", "--add", base, "low"]);
      await createImage(image, "qcow2", { backing: { file: "base.qcow2", format: "qcow2" } });
      await qemuIo(image, "qcow2", ["write -q -P 1 128k 1k", "write -q -z 512k 64k"]);
      await run("qemu-img", ["bitmap", "--add", image, "high"]);
      await tsimgfs(["commit", "-q", image]);
      expect(await readBitmaps(base)).toMatchObject([{ inUse: false, set: [2, 8] }]);
      // The disk has not changed.
      expect(await readBitmaps(image)).toMatchObject([{ inUse: false, set: [] }]);
      await tsimgfs(["stream", image]);
      expect(await readBitmaps(image)).toMatchObject([{ inUse: false, set: [] }]);
      await qemuIo(image, "qcow2", ["read -q -P 1 128k 1k"]);
      await expectClean(image);
      await expectClean(base);
    });
  });
});
