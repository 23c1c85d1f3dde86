// A raw device whose format was guessed from its name must not become an image of another format by what a guest writes.

import { open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { mounted } from "../support/mounted.ts";
import { createImage } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";
import { itOnce } from "../support/transport.ts";
import { expectDisk } from "../support/write-images.ts";

const SECTOR = 512;

/** A sector of noise with bytes of an image format in it. */
function sectorWith(offset: number, bytes: Buffer): Buffer {
  const sector = new Random("magic").bytes(SECTOR);
  bytes.copy(sector, offset);
  return sector;
}

const text = (value: string): Buffer => Buffer.from(value, "latin1");
const qcow = (version: number): Buffer =>
  Buffer.concat([text("QFI\xfb"), Buffer.of(0, 0, 0, version)]);

/** First sectors that say what a file is, from the specifications of the formats. */
const FIRST_SECTORS: readonly { readonly format: string; readonly sector: Buffer }[] = [
  { format: "qcow2 version 2", sector: sectorWith(0, qcow(2)) },
  { format: "qcow2 version 3", sector: sectorWith(0, qcow(3)) },
  { format: "qcow", sector: sectorWith(0, qcow(1)) },
  { format: "qed", sector: sectorWith(0, text("QED\0")) },
  { format: "vmdk, sparse", sector: sectorWith(0, text("KDMV")) },
  { format: "vmdk, old", sector: sectorWith(0, text("COWD")) },
  { format: "vhdx", sector: sectorWith(0, text("vhdxfile")) },
  { format: "vpc", sector: sectorWith(0, text("conectix")) },
  { format: "vdi", sector: sectorWith(64, Buffer.of(0x7f, 0x10, 0xda, 0xbe)) },
  { format: "luks", sector: sectorWith(0, Buffer.concat([text("LUKS\xba\xbe"), Buffer.of(0, 1)])) },
];

interface Device {
  readonly device: string;
  /** A plain file that takes the same writes. */
  readonly expected: string;
}

/** Mounts an empty raw image, calls `body`, and then compares the image with what was expected. */
async function withRaw(
  args: readonly string[],
  body: (raw: Device) => Promise<void>,
): Promise<void> {
  await withScratch("magic", async (directory) => {
    const path = join(directory, "disk.raw");
    const expected = join(directory, "expected");
    await createImage(path, "raw", { size: 2 ** 20 });
    await createImage(expected, "raw", { size: 2 ** 20 });
    await mounted([path], { args }, (mount) => body({ expected, device: mount.device(path) }));
    await expectDisk(path, "raw", expected);
  });
}

/** Writes bytes to a file by one write(2). */
async function put(file: string, bytes: Buffer, offset: number, flags = "r+"): Promise<void> {
  const handle = await open(file, flags);
  try {
    await handle.write(bytes, 0, bytes.length, offset);
  } finally {
    await handle.close();
  }
}

async function expectRefused(device: string, bytes: Buffer, offset: number): Promise<void> {
  for (const flags of ["r+", "rs+"]) {
    await expect(put(device, bytes, offset, flags)).rejects.toMatchObject({ code: "EPERM" });
  }
}

describe("a raw device of a probed image", () => {
  it("refuses a first sector that says that it is another format", async () => {
    await withRaw([], async ({ device, expected }) => {
      const harmless = new Random("harmless").bytes(3 * SECTOR);
      for (const { sector } of FIRST_SECTORS) {
        await expectRefused(device, sector, 0);
        await expectRefused(device, Buffer.concat([sector, sector, sector]), 0);
        for (const file of [device, expected]) {
          await put(file, harmless, 0);
          await put(file, sector, SECTOR); // Nobody looks for a magic there.
        }
        await expectRefused(device, sector, 0);
      }
    });
  });

  itOnce.each(FIRST_SECTORS)("refuses what QEMU refuses: $format", async ({ sector }) => {
    await withScratch("magic", async (directory) => {
      const source = join(directory, "source");
      const path = join(directory, "disk.raw");
      await writeFile(source, sector);
      await createImage(path, "raw", { size: 2 ** 20 });
      const { stdout, stderr } = await attempt("qemu-io", ["-c", `write -s ${source} 0 512`, path]);
      expect(stdout + stderr).toMatch(/Operation not permitted/);
    });
  });

  it("refuses the last piece of a magic that is written in pieces", async () => {
    await withRaw([], async ({ device, expected }) => {
      for (const file of [device, expected]) {
        await put(file, text("QFI"), 0);
      }
      await expectRefused(device, text("\xfb"), 3);
      await expectRefused(device, Buffer.concat([text("\xfb"), Buffer.alloc(5000)]), 3);
      for (const file of [device, expected]) {
        await put(file, text("x"), 0);
        await put(file, text("\xfb"), 3);
      }
      await expectRefused(device, text("Q"), 0);
    });
  });

  it("goes on with everything else after a refusal", async () => {
    await withRaw([], async ({ device, expected }) => {
      const image = `${expected}.qcow2`;
      await createImage(image, "qcow2", { size: 2 ** 20 });
      const { status, stderr } = await attempt("cp", [image, device], { env: { LC_ALL: "C" } });
      expect({ status, stderr }).toEqual({
        status: 1,
        stderr: expect.stringMatching(/Operation not permitted/),
      });
      const noise = `${expected}.noise`;
      await writeFile(noise, new Random("after").bytes(2 ** 20));
      await run("cp", [noise, device]);
      await run("cp", [noise, expected]);
    });
  });
});

describe("a raw device of an image whose format was stated", () => {
  it("takes a first sector that says that it is another format", async () => {
    await withRaw(["--format", "raw"], async ({ device, expected }) => {
      for (const { format, sector } of FIRST_SECTORS) {
        for (const file of [device, expected]) {
          await put(file, sector, 0);
        }
        await expectSameBytes(device, expected, format);
      }
    });
  });
});

describe("a qcow2 device", () => {
  it("takes any first sector", async () => {
    await withScratch("magic", async (directory) => {
      const path = join(directory, "disk.qcow2");
      const expected = join(directory, "expected");
      await createImage(path, "qcow2", { size: 2 ** 20 });
      await createImage(expected, "raw", { size: 2 ** 20 });
      await mounted([path], {}, async (mount) => {
        for (const { sector } of FIRST_SECTORS) {
          await put(mount.device(path), sector, 0);
          await put(expected, sector, 0);
        }
      });
      await expectDisk(path, "qcow2", expected);
    });
  });
});
