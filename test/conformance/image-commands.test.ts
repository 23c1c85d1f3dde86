// compare, measure, dd and bench beside those of qemu-img: output, exit status and contents.

import { readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { CONVERT_SOURCES, makeConvertSource } from "../support/convert-sources.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { attempt, type RunResult, run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";
import { attemptTsimgfs, attemptWithOutput, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

interface Both {
  readonly ours: RunResult;
  readonly theirs: RunResult;
}

async function both(command: string, args: readonly string[]): Promise<Both> {
  const ours = await attemptTsimgfs([command, ...args]);
  return { ours, theirs: await attempt("qemu-img", [command, ...args]) };
}

/** Expects the same output and exit status. */
async function expectSame(command: string, args: readonly string[]): Promise<RunResult> {
  const { ours, theirs } = await both(command, args);
  expect({ status: ours.status, stdout: ours.stdout }, ours.commandLine).toEqual({
    status: theirs.status,
    stdout: theirs.stdout,
  });
  return ours;
}

describe("tsimgfs compare", () => {
  it("finds what qemu-img compare finds, where it finds it", async () => {
    await withScratch("compare", async (directory) => {
      const raw = join(directory, "a.raw");
      const image = join(directory, "b.qcow2");
      await createImage(raw, "raw", { size: 3 * 2 ** 20 });
      await createImage(image, "qcow2", { size: 3 * 2 ** 20, options: { cluster_size: 4096 } });
      const disks = ["-f", "raw", "-F", "qcow2", raw, image];
      const equal = await expectSame("compare", disks);
      expect(equal.stdout).toBe("Images are identical.\n");
      await expectSame("compare", ["-s", ...disks]);
      await qemuIo(raw, "raw", ["write -P 5 2500k 1k"]);
      expect((await expectSame("compare", disks)).stdout).toMatch(/^Content mismatch at offset/);
      await qemuIo(image, "qcow2", ["write -P 5 2500k 512"]);
      expect((await expectSame("compare", disks)).status).toBe(1);
      expect((await expectSame("compare", ["-q", ...disks])).stdout).toBe("");
      await qemuIo(image, "qcow2", ["write -P 5 2500k 1k", "write -P 0 0 64k"]);
      expect((await expectSame("compare", disks)).status).toBe(0);
      await truncate(raw, 4 * 2 ** 20);
      expect((await expectSame("compare", disks)).stdout).toMatch(/^Warning: Image size mismatch!/);
      await expectSame("compare", ["-s", ...disks]);
      await qemuIo(raw, "raw", ["write -P 6 3500k 1"]);
      expect((await expectSame("compare", disks)).status).toBe(1);
      expect((await expectSame("compare", ["-f", "qcow2", image, image])).status).toBe(0);
    });
  });

  it("never says that they differ, or are equal, because of its output", async () => {
    await withScratch("compare-output", async (directory) => {
      const [a = "", b = ""] = ["a.raw", "b.raw"].map((name) => join(directory, name));
      await writeFile(a, Buffer.alloc(2 ** 20));
      for (const status of [0, 1]) {
        await writeFile(b, Buffer.alloc(2 ** 20, status));
        const args = ["compare", "-f", "raw", "-F", "raw", a, b];
        const full = await attemptWithOutput("full", args);
        expect(full.status).toBe(2);
        expect(full.stderr).toBe("tsimgfs: standard output: no space left\n");
        expect(await attemptWithOutput("gone", args)).toMatchObject({ status, stderr: "" });
      }
    });
  });

  it("has an exit status of its own for what cannot be opened, or read", async () => {
    await withScratch("compare", async (directory) => {
      const raw = join(directory, "a.raw");
      const image = join(directory, "b.qcow2");
      await createImage(raw, "raw", { size: 2 ** 20 });
      await createImage(image, "qcow2", { size: 2 ** 20 });
      const missing = await attemptTsimgfs(["compare", raw, join(directory, "missing")]);
      expect(missing.status).toBe(2);
      expect(missing.stderr).toMatch(/^tsimgfs: .*missing: no such file\n$/);
      await qemuIo(image, "qcow2", ["write -P 1 0 64k"]);
      const bytes = await readFile(image);
      // Its L2 table is nowhere.
      bytes.writeBigUInt64BE(0x8000_0000_0000_0200n, Number(bytes.readBigUInt64BE(40)));
      await writeFile(image, bytes);
      const damaged = await attemptTsimgfs(["compare", raw, image]);
      expect(damaged.status).toBe(4);
      expect(damaged.stderr).toMatch(/^tsimgfs: [^\n]+\n$/);
    });
  });
});

describe("tsimgfs measure", () => {
  const OPTIONS: readonly (readonly string[])[] = [
    ["-O", "raw"],
    ["-O", "qcow2"],
    ["-O", "qcow2", "-o", "cluster_size=4k,refcount_bits=1", "--output", "json"],
    ["-O", "qcow2", "-o", "cluster_size=2M,refcount_bits=64,extended_l2=on"],
    ["-O", "qcow2", "-o", "preallocation=full,compat=0.10"],
    ["-O", "qcow2", "-o", "cluster_size=512,preallocation=metadata", "--output", "json"],
  ];

  it.each(CONVERT_SOURCES.filter((_, index) => index % 2 === 1))(
    "of $name is as qemu-img measure",
    async (source) => {
      await withScratch("measure", async (directory) => {
        const path = await makeConvertSource(directory, source);
        for (const options of OPTIONS) await expectSame("measure", [...options, path]);
      });
    },
  );

  it("of a size, of snapshots and of bitmaps is as qemu-img measure", async () => {
    await withScratch("measure", async (directory) => {
      for (const size of ["0", "1", "512", "100M", "1T", "3000G"]) {
        const [, first = []] = OPTIONS;
        await expectSame("measure", [...first, "--size", size]);
      }
      const image = join(directory, "a.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 24 });
      await qemuIo(image, "qcow2", ["write -P 1 0 1M"]);
      await run("qemu-img", ["snapshot", "-c", "one", image]);
      await qemuIo(image, "qcow2", ["write -P 1 8M 1M"]);
      await expectSame("measure", ["-O", "qcow2", "-l", "one", image]);
      await run("qemu-img", ["bitmap", "--add", image, "changes"]);
      await run("qemu-img", ["bitmap", "--add", "-g", "512", image, "more changes"]);
      await expectSame("measure", ["-O", "qcow2", image]);
      await expectSame("measure", ["-O", "qcow2", "-o", "compat=0.10", image]);
      for (const options of ["cluster_size=3", "refcount_bits=3", "compat=0.10,refcount_bits=8"]) {
        const args = ["measure", "-O", "qcow2", "-o", options, "--size", "1M"];
        expect((await attempt("qemu-img", args)).status).toBe(1);
        await expectRefusal(args, [/(cluster_size 3|refcount_bits)/]);
      }
      await expectRefusal(["measure", "-O", "qed", image], [/qed images cannot be measured/]);
      await expectRefusal(["measure"], [/needs either an image or --size/]);
      await expectRefusal(["measure", "--size", "1M", image], [/either an image or --size/]);
    });
  });
});

describe("tsimgfs map", () => {
  it("shows parts of a disk as qemu-img map", async () => {
    await withScratch("map", async (directory) => {
      const image = join(directory, "a.qcow2");
      await createImage(image, "qcow2", { size: 2 ** 20 });
      await qemuIo(image, "qcow2", ["write -P 1 64k 128k", "write -z 256k 64k"]);
      for (const start of ["100", "1048575", "1M", "3M"]) {
        for (const length of [[], ["-l", "200k"]]) {
          const args = ["map", "-s", start, ...length, image];
          await expectSame("map", args.slice(1));
          const { stdout } = await tsimgfs([...args, "--output", "json"]);
          const theirs = await run("qemu-img", [...args, "--output", "json"]);
          // A newer field.
          expect(stdout.replaceAll(', "compressed": false', "")).toBe(theirs.stdout);
        }
      }
    });
  });
});

describe("tsimgfs dd", () => {
  it("copies the same parts as qemu-img dd", async () => {
    await withScratch("dd", async (directory) => {
      const [source] = CONVERT_SOURCES.filter(({ backing }) => backing !== undefined);
      if (source === undefined) throw new Error("no such source");
      const path = await makeConvertSource(directory, source);
      const [ours, theirs] = [join(directory, "ours"), join(directory, "theirs")];
      for (const operands of [
        [],
        ["bs=1M", "count=2"],
        ["bs=64k", "skip=3"],
        ["bs=1000", "count=3000", "skip=200"],
        ["bs=4k", "count=1000000", "skip=1"],
      ]) {
        for (const format of ["raw", "qcow2"]) {
          const args = ["dd", "-f", source.format, "-O", format, ...operands, `if=${path}`];
          await tsimgfs([...args, `of=${ours}`]);
          await run("qemu-img", [...args, `of=${theirs}`]);
          await run("qemu-img", ["compare", ours, theirs]);
          if (format === "raw") expect((await stat(ours)).size).toBe((await stat(theirs)).size);
        }
      }
      // Nothing is left to copy, which is told, and no failure.
      for (const format of ["raw", "qcow2"]) {
        const args = ["dd", "-f", source.format, "-O", format, "skip=1T", `if=${path}`];
        const { stderr } = await tsimgfs([...args, `of=${ours}`]);
        expect(stderr).toMatch(/^tsimgfs: .*: cannot skip \d+ bytes of \d+\n$/);
        await run("qemu-img", [...args, `of=${theirs}`]);
        await run("qemu-img", ["compare", "-f", format, "-F", format, ours, theirs]);
      }
      await expectRefusal(["dd", "bs=0", `if=${path}`, `of=${ours}`], [/bs=: 0 is not a number/]);
      await expectRefusal(["dd", `if=${path}`, "conv=sync"], [/conv=sync is not one of/]);
      await expectRefusal(["dd", `if=${path}`], [/needs if=IMAGE and of=TARGET/]);
      await expectRefusal(["dd", `if=${path}`, `of=${path}`], [/is what is read from/]);
    });
  });
});

describe("tsimgfs bench", () => {
  /** The report without how long it took. */
  function reportOf({ stdout }: RunResult): string {
    expect(stdout).toMatch(/\nRun completed in \d+\.\d{3} seconds\.\n$/);
    return stdout.slice(0, stdout.indexOf("Run completed"));
  }

  it("reports as qemu-img bench, and writes what it writes", async () => {
    await withScratch("bench", async (directory) => {
      const [ours, theirs] = [join(directory, "ours"), join(directory, "theirs")];
      for (const image of [ours, theirs]) await createImage(image, "qcow2", { size: 2 ** 20 });
      for (const args of [
        ["-c", "100"],
        ["-c", "14", "-d", "4", "-s", "64k", "-o", "4096", "-f", "qcow2"],
        ["-w", "-c", "100", "-S", "8k", "-s", "4k", "--pattern", "7"],
        ["-w", "-c", "30", "-d", "4", "--flush-interval", "10", "-o", "4096", "--pattern", "9"],
      ]) {
        const mine = await tsimgfs(["bench", ...args, ours]);
        expect(reportOf(mine)).toBe(reportOf(await run("qemu-img", ["bench", ...args, theirs])));
      }
      await run("qemu-img", ["compare", ours, theirs]);
      expect((await tsimgfs(["bench", "-q", "-c", "1", ours])).stdout).toBe("");
      const flush = ["bench", "--flush-interval", "2", ours];
      await expectRefusal(flush, [/--flush-interval: is for writes only/]);
    });
  });

  it.each([
    "-s 2M",
    "-o 1M",
    "-o 1044481 -c 1",
    "-s 60k -c 18",
    "-s 60k -c 17",
    "-s 64k -S 50000 -c 40",
    "-s 512k -S 700k -c 2",
    "-s 64k -S 3M -c 3",
    "-s 1M -c 3",
    "-s 64k -o 1000k -c 0",
  ])("fails where qemu-img bench does: %s", async (options) => {
    const args = options.split(" ");
    await withScratch("bench-end", async (directory) => {
      const image = join(directory, "image");
      await createImage(image, "raw", { size: 2 ** 20 });
      for (const kind of [["-q"], ["-q", "-w"]]) {
        const { ours, theirs } = await both("bench", [...kind, "-f", "raw", ...args, image]);
        expect(ours.status).toBe(theirs.status);
        if (ours.status !== 0) {
          expect(ours.stderr).toMatch(/^tsimgfs: [^\n]* request \d+, of \d+ bytes at \d+, crosses/);
          expect(ours.stdout).toBe("");
        }
        expect((await stat(image)).size).toBe(2 ** 20);
      }
    });
  });
});
