// Copying devices with the programs people use: cp in its sparse modes, tar, and QEMU on top of the device.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { zeroRuns } from "../support/disk-map.ts";
import { mounted } from "../support/mounted.ts";
import { createImage, imageMap, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itNeeds } from "../support/transport.ts";

const MIB = 2 ** 20;

/** Bytes that a file occupies. */
async function allocated(file: string): Promise<number> {
  const { stdout } = await run("stat", ["--format=%b %B", file]);
  const [blocks = 0, blockSize = 0] = stdout.trim().split(" ").map(Number);
  return blocks * blockSize;
}

describe("copying a device", () => {
  let directory = "";
  let sample: SampleImage;
  /** A large disk with a megabyte of data at its start, in its middle and at its end. */
  let sparse = "";

  beforeAll(async () => {
    directory = await makeScratch("copying");
    sample = await makeSample(directory, "vm.qcow2");
    sparse = join(directory, "sparse.qcow2");
    await createImage(sparse, "qcow2", { size: 20_000 * MIB });
    const writes = [0, 10_000, 19_999].map((start) => `write -q -P 7 ${start}M 1M`);
    await qemuIo(sparse, "qcow2", writes);
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it.each(["auto", "always", "never"])("with cp --sparse=%s gives the same bytes", async (mode) => {
    await mounted([sample.path], {}, async (mount) => {
      const copy = join(directory, "copy");
      await run("cp", [`--sparse=${mode}`, mount.device(sample.path), copy]);
      await expectSameBytes(copy, sample.expected, `cp --sparse=${mode}`);
    });
  });

  itNeeds("seek")("with cp skips the holes of a large disk, and keeps them", async () => {
    await mounted([sparse], { args: ["-r"] }, async (mount) => {
      const copy = join(directory, "copy");
      await run("cp", [mount.device(sparse), copy], { timeoutMs: 20_000 });
      expect(await allocated(copy)).toBeLessThan(4 * MIB);
      expect(zeroRuns(await imageMap(["-f", "raw", copy]))).toEqual(
        zeroRuns(await imageMap(["-f", "qcow2", sparse])),
      );
      await run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", copy, sparse]);
    });
  });

  it("with tar --sparse gives the same bytes", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const archive = join(directory, "archive.tar");
      await run("tar", ["--sparse", "-C", mount.mountPoint, "-cf", archive, "vm.raw"]);
      await run("tar", ["-C", directory, "-xf", archive]);
      await expectSameBytes(join(directory, "vm.raw"), sample.expected, "tar");
    });
  });

  it("through QEMU on top of it finds no difference from the image", async () => {
    await mounted([sample.path], { args: ["-r"] }, async (mount) => {
      const device = mount.device(sample.path);
      await run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", device, sample.path]);
      for (const cache of ["none", "writeback", "directsync"]) {
        const copy = join(directory, "copy");
        const convert = ["convert", "-T", cache, "-f", "raw", "-O", "raw", device, copy];
        await run("qemu-img", convert);
        await expectSameBytes(copy, sample.expected, `qemu-img convert -T ${cache}`);
      }
    });
  });
});
