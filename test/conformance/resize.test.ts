// tsimgfs resize beside qemu-img resize: all kinds of images, preallocation, refusals, full disks, and kills.

import { copyFile, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withProgram } from "../support/foreground.ts";
import { asRecord } from "../support/json.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import {
  checkImage,
  expectClean,
  expectDisk,
  fileUsage,
  type WriteImage,
  type WriteKindName,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;

const SHRINKABLE: readonly WriteKindName[] = [
  ...(["v3", "clusters-512", "extended-l2-16k-over-qcow2"] as const),
  ...(["v2-over-qed", "data-file-raw", "raw"] as const),
  ...byScale(
    [],
    [
      ...([
        "v2",
        "clusters-4k",
        "clusters-2m",
        "refcount-1",
        "refcount-64",
        "lazy-refcounts",
      ] as const),
      ...([
        "preallocated",
        "snapshot",
        "extended-l2",
        "bitmap",
        "data-file",
        "compressed",
        "over-raw",
        "over-qcow2",
      ] as const),
    ],
  ),
];

async function virtualSizeOf(path: string, format: string): Promise<number> {
  return Number(asRecord(await imageInfo(["-f", format, path]))["virtual-size"]);
}

/** Resizes the image, and the file that says what its disk contains. */
async function resizeBoth(image: WriteImage, args: readonly string[], size: string): Promise<void> {
  const { stdout } = await tsimgfs(["resize", "-f", image.kind.format, ...args, image.path, size]);
  expect(stdout).toBe("Image resized.\n");
  await run("truncate", ["-s", size, image.expected]);
  const { size: wanted } = await stat(image.expected);
  expect(await virtualSizeOf(image.path, image.kind.format)).toBe(wanted);
}

describe.each(SHRINKABLE)("tsimgfs resize of kind %s", (name) => {
  it("grows and shrinks, and shows nothing of what was cut off", async () => {
    await withWriteImage(writeKind(name), 3 * MIB, async (image) => {
      for (const size of ["1000448", "+4M", "300k", "3M"]) {
        await resizeBoth(image, ["--shrink"], size);
        await image.expectIntact();
      }
    });
  });
});

describe.each(["qed", "qed-16k-over-qcow2"] as const)("tsimgfs resize of kind %s", (name) => {
  it("grows only", async () => {
    await withWriteImage(writeKind(name), 3 * MIB, async (image) => {
      await resizeBoth(image, [], "+9M");
      const shrunk = await attemptTsimgfs(["resize", "--shrink", image.path, "-1M"]);
      expect(shrunk).toMatchObject({ status: 1, stderr: expect.stringMatching(/cannot shrink/) });
      const full = await attemptTsimgfs(["resize", "--preallocation=full", image.path, "+1M"]);
      const reason = /unsupported preallocation mode "full"/;
      expect(full).toMatchObject({ status: 1, stderr: expect.stringMatching(reason) });
      await image.expectIntact();
    });
  });
});

describe("tsimgfs resize over a longer backing file", () => {
  it.each([
    ["qcow2", "1.1"],
    ["qcow2", "0.10"],
    ["qed", undefined],
  ] as const)("grows by zeros in %s %s", async (format, compat) => {
    await withScratch("resize", async (directory) => {
      const [base, image, expected] = ["base.raw", "overlay", "expected"].map((file) =>
        join(directory, file),
      ) as [string, string, string];
      await createImage(base, "raw", { size: 4 * MIB });
      await qemuIo(base, "raw", ["write -q -P 7 0 4M"]);
      await createImage(image, format, {
        size: MIB + 512,
        backing: { file: base, format: "raw" },
        options: compat === undefined ? {} : { compat },
      });
      await run("cp", [base, expected]);
      await run("truncate", ["-s", String(MIB + 512), expected]);
      for (const size of [2 * MIB, 3 * MIB + 512, 8 * MIB]) {
        await tsimgfs(["resize", "-q", image, String(size)]);
        await run("truncate", ["-s", String(size), expected]);
        await expectDisk(image, format, expected);
        await expectClean(image, format);
      }
    });
  });
});

describe("tsimgfs resize --shrink", () => {
  it("makes the file as short as qemu-img does", async () => {
    await withScratch("resize", async (directory) => {
      const [ours, theirs] = ["ours.qcow2", "theirs.qcow2"].map((file) =>
        join(directory, file),
      ) as [string, string];
      const options = { cluster_size: 512 };
      await createImage(ours, "qcow2", { size: 8 * MIB, options });
      await qemuIo(ours, "qcow2", ["write -q -P 1 0 8M"]);
      await copyFile(ours, theirs);
      // Refcount blocks that count only themselves go, too.
      for (const size of ["5M", "100k", "512"]) {
        await tsimgfs(["resize", "--shrink", ours, size]);
        await run("qemu-img", ["resize", "--shrink", theirs, size]);
        await run("qemu-img", ["compare", ours, theirs]);
        await expectClean(ours);
        const [we, they] = [await fileUsage(ours), await fileUsage(theirs)];
        expect(we.length).toBeLessThanOrEqual(they.length + 64 * 1024);
      }
    });
  });
});

describe.each(["qcow2", "raw"] as const)("tsimgfs resize --preallocation of %s", (format) => {
  it.each(["off", "metadata", "falloc", "full"] as const)("%s", async (mode) => {
    if (format === "raw" && mode === "metadata") return;
    await withScratch("resize", async (directory) => {
      const image = join(directory, `disk.${format}`);
      const expected = join(directory, "expected");
      await createImage(image, format, { size: MIB });
      await qemuIo(image, format, ["write -q -P 3 0 1M"]);
      await run("qemu-img", ["convert", "-f", format, "-O", "raw", image, expected]);
      const copy = `${image}.copy`;
      await copyFile(image, copy);
      await tsimgfs(["resize", "-f", format, `--preallocation=${mode}`, image, "+7M"]);
      await run("qemu-img", ["resize", "-q", "-f", format, `--preallocation=${mode}`, copy, "8M"]);
      await run("truncate", ["-s", "8M", expected]);
      await expectDisk(image, format, expected);
      await expectClean(image, format);
      const [ours, theirs] = [await fileUsage(image), await fileUsage(copy)];
      expect(Math.abs(ours.length - theirs.length)).toBeLessThanOrEqual(128 * 1024);
      expect(Math.abs(ours.allocated - theirs.allocated)).toBeLessThanOrEqual(256 * 1024);
      await expectRefusal(
        ["resize", "-f", format, "--shrink", `--preallocation=full`, image, "1M"],
        [/preallocation can only be used for growing images/],
      );
    });
  });
});

describe("tsimgfs resize", () => {
  const REFUSALS = [
    [["-10k"], /use the --shrink option/],
    [["1k"], /use the --shrink option/],
    [["--shrink", "-2M"], /the new image size must be positive/],
    [["--shrink", "0"], /the new image size must be positive/],
    [["+1000"], /the new size must be a multiple of 512/],
    [["--preallocation=x", "2M"], /--preallocation: x is not one of off, metadata, falloc, full/],
    [["2E"], /: a size of 2305843009213693952 is above the limit of 2\^53 - 512 bytes/],
    [["9223372036854775807"], /: a size of 9223372036854775807 is above the limit/],
    [["+9007199254740992"], /: a size of 9007199255789568 is above the limit/],
    [["9007199254740991"], /: a size of 9007199254740991 is above the limit/],
    [["--", "two"], /two is not a size/],
    [["+-5"], /is not a size/],
    [["600T"], /needs an L1 table of more than/],
  ] as const;

  it("refuses what qemu-img refuses, and leaves the image as it is", async () => {
    await withScratch("resize", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: MIB, options: { cluster_size: 4096 } });
      const before = (await run("sha256sum", [image])).stdout;
      for (const [args, reason] of REFUSALS) {
        const [size, ...options] = [...args].reverse();
        const line = [...options.reverse(), image, String(size)];
        await expectRefusal(["resize", ...line], [reason]);
        const theirs = await attempt("qemu-img", ["resize", ...line]);
        expect(theirs.status, line.join(" ")).toBe(1);
      }
      expect((await run("sha256sum", [image])).stdout).toBe(before);
      await run("qemu-img", ["snapshot", "-q", "-c", "one", image]);
      await run("qemu-img", ["amend", "-o", "compat=0.10", image]);
      await expectRefusal(["resize", image, "2M"], [/has snapshots that do not say their size/]);
      await expectRefusal(["resize", join(directory, "none"), "2M"], [/no such file/]);
    });
  });

  it("tells of damage that it finds past the end", async () => {
    await withScratch("resize-damage", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await qemuIo(image, "qcow2", ["write -q -P 3 0 1M"]);
      const bytes = await readFile(image);
      const l1 = Number(bytes.readBigUInt64BE(40));
      const l2 = Number(bytes.readBigUInt64BE(l1) & 0xff_ffff_ffff_fe00n);
      // An entry that the disk of 16 clusters does not reach, with an offset that is none.
      bytes.writeBigUInt64BE(512n, l2 + 20 * 8);
      await writeFile(image, bytes);
      const args = ["resize", "--shrink", image, "512k"];
      expect(refusalOf(await attemptTsimgfs(args))).toMatch(
        /L2 entry at .* cluster size; .* corrupt/,
      );
    });
  });

  it("leaves an image as it was when the host has no space", async () => {
    await withTmpfs(8 * MIB, async ({ directory }) => {
      const image = join(directory, "disk.qcow2");
      const expected = join(directory, "expected");
      await createImage(image, "qcow2", { size: MIB });
      await qemuIo(image, "qcow2", ["write -q -P 3 0 1M"]);
      await run("qemu-img", ["convert", "-O", "raw", image, expected]);
      for (const mode of ["falloc", "full"]) {
        const args = ["resize", `--preallocation=${mode}`, image, "64M"];
        expect(refusalOf(await attemptTsimgfs(args))).toMatch(/ENOSPC/);
        expect(await virtualSizeOf(image, "qcow2")).toBe(MIB);
        await expectDisk(image, "qcow2", expected);
        await expectClean(image);
        expect((await fileUsage(image)).allocated).toBeLessThan(2 * MIB);
      }
      await tsimgfs(["resize", image, "64M"]);
    });
  });

  it.each(
    byScale(
      [0, 1, 2],
      Array.from({ length: 20 }, (_, index) => index),
    ),
  )("can be killed at any moment (%i)", async (number) => {
    await withWriteImage(writeKind("over-raw"), 3 * MIB, async (image) => {
      const random = new Random(`kill ${number}`);
      const args = ["resize", "--preallocation=full", image.path, "96M"];
      await withProgram(process.execPath, [MAIN, ...args], async (program) => {
        const isGrowing = async (): Promise<boolean> =>
          (await fileUsage(image.path)).length > 4 * MIB;
        await expect.poll(isGrowing, { timeout: 60_000 }).toBe(true);
        await new Promise((resolve) => setTimeout(resolve, random.below(60)));
        if (program.isRunning) program.kill("SIGKILL");
        await program.end();
      });
      expect((await checkImage(image.path)).verdict).not.toBe("corrupt");
      const size = await virtualSizeOf(image.path, "qcow2");
      expect([image.size, 96 * MIB]).toContain(size);
      await tsimgfs(["resize", image.path, "97M"]);
      await run("truncate", ["-s", "97M", image.expected]);
      await image.expectIntact();
    });
  });
});
