// tsimgfs amend beside qemu-img amend: versions, refcounts, flags, names and sizes; refusals, and full disks.

import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { asRecord } from "../support/json.ts";
import { createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import {
  expectClean,
  expectDisk,
  type WriteKindName,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;

/** What qemu-img says of an image, without what depends on where it lies. */
async function infoOf(image: string): Promise<unknown> {
  const {
    filename: _,
    "actual-size": _size,
    children: _children,
    ...info
  } = asRecord(await imageInfo(["-f", "qcow2", image]));
  return info;
}

const CHANGES: readonly (readonly [kind: WriteKindName, changes: string])[] = [
  ["v3", "compat=0.10; compat=1.1,lazy_refcounts=on; refcount_bits=1; refcount_bits=64"],
  ["v2-over-qed", "compat=v3,refcount_bits=32; compat=v2,refcount_bits=16"],
  ["snapshot-v2", "compat=1.1; refcount_bits=2,lazy_refcounts=on; lazy_refcounts=off"],
  ["over-raw", "refcount_bits=8; size=9M; size=2M"],
  ["clusters-512", "refcount_bits=64; refcount_bits=4; compat=0.10,refcount_bits=16"],
  ...byScale<(readonly [kind: WriteKindName, changes: string])[]>(
    [],
    [
      ["snapshot", "compat=0.10; compat=1.1; refcount_bits=4"],
      ["over-qcow2", "compat=0.10; compat=1.1"],
      ["clusters-2m", "refcount_bits=64; refcount_bits=16,compat=v2"],
      ["refcount-64", "refcount_bits=16; compat=0.10"],
      ["lazy-refcounts", "compat=0.10; compat=1.1"],
      ["preallocated", "refcount_bits=1; refcount_bits=16; compat=0.10"],
      ["compressed", "refcount_bits=16; compat=0.10; compat=1.1,refcount_bits=32"],
      ["extended-l2", "refcount_bits=1; lazy_refcounts=on"],
      ["data-file-raw", "refcount_bits=1; data_file_raw=off"],
      ["bitmap", "refcount_bits=64; lazy_refcounts=on"],
    ],
  ),
];

describe.each(CHANGES)("tsimgfs amend of kind %s", (name, changes) => {
  it(`${changes}: as qemu-img sees it`, async () => {
    await withWriteImage(writeKind(name), 3 * MIB, async (image) => {
      const theirs = `${image.path}.theirs`;
      for (const options of changes.split("; ")) {
        await copyFile(image.path, theirs);
        await tsimgfs(["amend", "-o", options, image.path]);
        await run("qemu-img", ["amend", "-o", options, theirs]);
        const size = /size=(\w+)/.exec(options)?.[1];
        if (size !== undefined) await run("truncate", ["-s", size, image.expected]);
        expect(await infoOf(image.path)).toEqual(await infoOf(theirs));
        await image.expectIntact();
      }
    });
  });
});

describe("tsimgfs amend to version 2", () => {
  it("keeps zeros over a backing file", async () => {
    await withScratch("amend", async (directory) => {
      const [base, image, expected] = ["base.raw", "overlay.qcow2", "expected"].map((file) =>
        join(directory, file),
      ) as [string, string, string];
      await createImage(base, "raw", { size: 2 * MIB + 512 });
      await qemuIo(base, "raw", ["write -q -P 7 0 2097664"]);
      await createImage(image, "qcow2", { size: 4 * MIB, backing: { file: base, format: "raw" } });
      await qemuIo(image, "qcow2", [
        ...["write -q -P 1 0 192k", "write -q -z 64k 64k", "write -q -z -u 256k 300k"],
        ...["write -q -z 2M 64k", "write -q -z -u 3M 64k"],
      ]);
      await run("qemu-img", ["convert", "-O", "raw", image, expected]);
      await tsimgfs(["amend", "-p", "-o", "compat=0.10", image]);
      await expectDisk(image, "qcow2", expected);
      await expectClean(image);
      // Expanded, but not written.
      const { stdout } = await run("stat", ["-c", "%b", image]);
      expect(Number(stdout) * 512).toBeLessThan(MIB);
    });
  });

  it("lets snapshots keep their zeros", async () => {
    await withScratch("amend", async (directory) => {
      const image = join(directory, "disk.qcow2");
      const raw = (name: string): string => join(directory, name);
      await createImage(image, "qcow2", { size: 4 * MIB });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 1M", "write -q -z 64k 64k"]);
      await run("qemu-img", ["snapshot", "-q", "-c", "one", image]);
      await qemuIo(image, "qcow2", ["write -q -P 2 32k 300k", "write -q -z -u 512k 64k"]);
      const convert = ["convert", "-O", "raw"];
      await run("qemu-img", [...convert, image, raw("now")]);
      await run("qemu-img", [...convert, "-l", "one", image, raw("one")]);
      await tsimgfs(["amend", "-o", "compat=0.10", image]);
      await expectClean(image);
      await expectDisk(image, "qcow2", raw("now"));
      await run("qemu-img", [...convert, "-l", "one", image, raw("again")]);
      await run("cmp", [raw("one"), raw("again")]);
    });
  });
});

describe("tsimgfs amend of a backing file", () => {
  it("changes names alone", async () => {
    await withScratch("amend", async (directory) => {
      const image = join(directory, "overlay.qcow2");
      await createImage(join(directory, "base.raw"), "raw", { size: MIB });
      const backing = { file: "base.raw", format: "raw" } as const;
      await createImage(image, "qcow2", { size: MIB, backing });
      const backingOf = async (): Promise<unknown[]> => {
        const info = asRecord(await imageInfo(["-f", "qcow2", image]));
        return [info["backing-filename"], info["backing-filename-format"]];
      };
      const missing = await tsimgfs(["amend", "-o", "backing_file=none.img", image]);
      expect(missing.stderr).toBe(
        `tsimgfs: ${image}: warning: its backing file ${join(directory, "none.img")} does not exist\n`,
      );
      expect(await backingOf()).toEqual(["none.img", "raw"]);
      await tsimgfs(["amend", "-o", "backing_file=a,,b,backing_fmt=qcow2", image]);
      expect(await backingOf()).toEqual(["a,b", "qcow2"]);
      const there = await tsimgfs(["amend", "-o", "backing_file=base.raw,backing_fmt=raw", image]);
      expect(there.stderr).toBe("");
      expect((await tsimgfs(["amend", "-o", "backing_file=", image])).stderr).toBe("");
      expect(await backingOf()).toEqual([undefined, undefined]);
      await expectRefusal(["amend", "-o", "backing_fmt=raw", image], [/has no backing file/]);
      await expectClean(image);
    });
  });
});

describe("tsimgfs amend", () => {
  const REFUSALS: readonly (readonly [options: string, reason: RegExp])[] = [
    ["cluster_size=4096", /cluster_size is for new images only: it cannot be amended/],
    ["preallocation=full", /cannot be amended/],
    ["encrypt.format=luks", /encrypt.format is for new images only: it cannot be amended/],
    ["nonsense=1", /there is no option "nonsense"/],
    ["refcount_bits=3", /is not a power of two in 1\.\.64/],
    ["refcount_bits=128", /is not a power of two in 1\.\.64/],
    ["compat=0.9", /0\.9 is not one of 0\.10, v2, 1\.1, v3/],
    ["compat=0.10,refcount_bits=8", /compat=0\.10 requires refcount_bits=16/],
    ["compat=0.10,lazy_refcounts=on", /lazy_refcounts=on requires compat=1\.1/],
    ["data_file_raw=on", /data_file_raw cannot be set on existing images/],
    ["data_file=x", /data_file can only be set for images that use an external data file/],
    ["size=1000", /the new size must be a multiple of 512/],
    ["refcount_bits=1", /refcount_bits=1 is too narrow: the cluster at 0x\w+ has a refcount of 2/],
  ];

  it("refuses what qemu-img refuses, and leaves the image as it is", async () => {
    await withScratch("amend", async (directory) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: MIB });
      await qemuIo(image, "qcow2", ["write -q -P 1 0 1M"]);
      await run("qemu-img", ["snapshot", "-q", "-c", "one", image]);
      const before = (await run("sha256sum", [image])).stdout;
      for (const [options, reason] of REFUSALS) {
        await expectRefusal(["amend", "-o", options, image], [reason]);
      }
      expect((await run("sha256sum", [image])).stdout).toBe(before);
      for (const [options] of REFUSALS.slice(0, byScale(1, REFUSALS.length))) {
        const copy = `${image}.copy`;
        await copyFile(image, copy);
        expect((await attempt("qemu-img", ["amend", "-o", options, copy])).status).toBe(1);
      }
      await expectRefusal(["amend", image], [/must specify options/]);
    });
  });

  it("does not downgrade what version 2 cannot have", async () => {
    await withScratch("amend", async (directory) => {
      const image = join(directory, "disk.qcow2");
      const cases: readonly (readonly [Record<string, string>, RegExp])[] = [
        [{ extended_l2: "on" }, /cannot downgrade an image with incompatible features/],
        [{ compression_type: "zstd" }, /cannot downgrade an image with incompatible features/],
        [{ data_file: join(directory, "data") }, /cannot downgrade an image with a data file/],
      ];
      for (const [options, reason] of cases) {
        await createImage(image, "qcow2", { size: MIB, options });
        await expectRefusal(["amend", "-o", "compat=0.10", image], [reason]);
      }
      await createImage(image, "qcow2", { size: MIB });
      await run("qemu-img", ["snapshot", "-q", "-c", "one", image]);
      await run("qemu-img", ["resize", "-q", image, "2M"]);
      const args = ["amend", "-o", "compat=0.10", image];
      await expectRefusal(args, [/internal snapshots prevent the downgrade/]);
      for (const format of ["raw", "qed"] as const) {
        const other = join(directory, `disk.${format}`);
        await createImage(other, format, { size: MIB });
        await expectRefusal(["amend", "-o", "size=2M", other], [/do not support amendment/]);
      }
    });
  });

  it("leaves an image as it was when the host has no space", async () => {
    await withTmpfs(4 * MIB, async ({ directory }) => {
      const image = join(directory, "disk.qcow2");
      await createImage(image, "qcow2", { size: 2 * MIB, options: { cluster_size: 512 } });
      await qemuIo(image, "qcow2", ["write -q -P 3 0 2M"]);
      const fill = attempt("dd", ["if=/dev/zero", `of=${join(directory, "fill")}`, "bs=4k"]);
      expect((await fill).status).toBe(1);
      const result = await attemptTsimgfs(["amend", "-o", "refcount_bits=64", image]);
      expect(refusalOf(result)).toMatch(/ENOSPC/);
      await expectClean(image);
      expect(JSON.stringify(await infoOf(image))).toMatch(/"refcount-bits":16/);
      await run("rm", [join(directory, "fill")]);
      await tsimgfs(["amend", "-o", "refcount_bits=64", image]);
      await expectClean(image);
    });
  });

  it("lists its options", async () => {
    const ours = (await tsimgfs(["amend", "-o", "help"])).stdout;
    const theirs = (await run("qemu-img", ["amend", "-f", "qcow2", "-o", "help"])).stdout;
    const names = (text: string): string[] => [...text.matchAll(/^ {2}(\w\S*)=/gm)].map(String);
    expect(names(ours)).toEqual(names(theirs));
  });
});
