// Which images a mount opens for writing, in which order it puts them first, and which it refuses to write to.

import { open, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { crashAfter } from "../support/crash-after.ts";
import { expectSameBytes } from "../support/device-content.ts";
import { makeMountPoint, mounted, refusedMount } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { convertToRaw, createImage, qemuIo } from "../support/qemu.ts";
import { run } from "../support/run.ts";
import { makeSample } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { itMainly, itOnce, MOUNT_COMMAND } from "../support/transport.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean, expectDisk } from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;

/** Where the incompatible features are in a qcow2 header: the last byte of the field. */
const INCOMPATIBLE_BYTE = 79;
const CORRUPT = 2;

describe("opening for writing", () => {
  let directory = "";

  beforeAll(async () => {
    directory = await makeScratch("write-opening");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true });
  });

  itMainly("repairs an image that QEMU left dirty", async () => {
    const path = join(directory, "dirty.qcow2");
    await createImage(path, "qcow2", { size: 8 * MIB, options: { lazy_refcounts: "on" } });
    const writes = ["write -P 1 0 300k", "write -P 2 3M 1M", "discard 64k 64k"];
    await crashAfter(path, "qcow2", writes);
    expect((await checkImage(path)).verdict).toBe("corrupt");
    const expected = join(directory, "dirty.expected");
    await convertToRaw(path, "qcow2", expected, ["-U"]);
    await mounted([path], {}, async (mount) => {
      await expectSameBytes(mount.device(path), expected, "a dirty image");
    });
    await expectClean(path);
    await expectDisk(path, "qcow2", expected);
  });

  itMainly("takes an image in which somebody leaked clusters", async () => {
    const path = join(directory, "leaks.qcow2");
    const expected = join(directory, "leaks.expected");
    await createImage(path, "qcow2", { size: 8 * MIB });
    await qemuIo(path, "qcow2", ["write -q -P 1 0 8M"]);
    // Without its table entry, a cluster whose refcount stays is a leak.
    const image = await open(path, "r+");
    const header = Buffer.alloc(48);
    await image.read(header, 0, 48, 0);
    const l1 = Buffer.alloc(8);
    await image.read(l1, 0, 8, Number(header.readBigUInt64BE(40)));
    const l2 = Number(l1.readBigUInt64BE() & 0x00ff_ffff_ffff_fe00n);
    await image.write(Buffer.alloc(80), 0, 80, l2 + 16);
    await image.close();
    expect((await checkImage(path)).verdict).toBe("leaks");
    await convertToRaw(path, "qcow2", expected);
    await mounted([path], {}, async (mount) => {
      const noise = join(directory, "noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=64k", "count=20"]);
      for (const target of [mount.device(path), expected]) {
        await run("dd", [`if=${noise}`, `of=${target}`, "bs=64k", "seek=5", "conv=notrunc"]);
      }
    });
    expect((await checkImage(path)).verdict).not.toBe("corrupt");
    await expectDisk(path, "qcow2", expected);
  });

  itMainly("is refused for an image that is marked corrupt, which -r shows", async () => {
    const path = join(directory, "corrupt.qcow2");
    await createImage(path, "qcow2", { size: MIB });
    const image = await open(path, "r+");
    await image.write(Buffer.of(CORRUPT), 0, 1, INCOMPATIBLE_BYTE);
    await image.close();
    expect(await refusedMount([path])).toMatch(/corrupt\.qcow2: .*corrupt.* -r\b/);
    await mounted([path], { args: ["-r"] }, async (mount) => {
      await run("cmp", ["-n", String(MIB), mount.device(path), "/dev/zero"]);
    });
  });

  it.skipIf(!IS_ROOT)("is refused on a read-only file system, which -r can show", async () => {
    await withTmpfs(8 * MIB, async (tmpfs) => {
      const path = join(tmpfs.directory, "disk.qcow2");
      await createImage(path, "qcow2", { size: MIB });
      await run("mount", ["-o", "remount,ro", tmpfs.directory]);
      expect(await refusedMount([path])).toMatch(/disk\.qcow2: .*-r\b/);
      await mounted([path], { args: ["-r"] }, async () => {});
    });
  });

  it("changes nothing in an image that is not written to", async () => {
    for (const { name, options } of [
      { name: "plain.qcow2", options: {} },
      { name: "lazy.qcow2", options: { lazy_refcounts: "on" } },
    ]) {
      const sample = await makeSample(directory, name, { options });
      const before = await readFile(sample.path);
      await mounted([sample.path], {}, async (mount) => {
        await expectSameBytes(mount.device(sample.path), sample.expected, "only read");
        await run("sync", [mount.device(sample.path)]);
      });
      expect((await readFile(sample.path)).equals(before), name).toBe(true);
    }
  });

  it("checks a QED image that QEMU left to be checked", async () => {
    const path = join(directory, "unchecked.qed");
    const expected = join(directory, "unchecked.expected");
    await createImage(path, "qed", { size: 8 * MIB });
    await crashAfter(path, "qed", ["write -P 1 0 300k", "write -P 2 3M 1M", "write -z 5M 1M"]);
    await convertToRaw(path, "qed", expected, ["-U"]);
    const { mountPoint, ownDirectory } = await makeMountPoint("directory");
    try {
      const { stderr } = await tsimgfs([...MOUNT_COMMAND, path, mountPoint]);
      expect(stderr).toMatch(/^tsimgfs: .*unchecked\.qed: warning: .*need-check.*\n$/m);
      const device = join(mountPoint, "unchecked.raw");
      await expectSameBytes(device, expected, "an image to be checked");
      const noise = join(directory, "unchecked.noise");
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1000", "count=300"]);
      for (const target of [device, expected]) {
        const where = ["bs=1000", "seek=1234", "conv=notrunc"];
        await run("dd", [`if=${noise}`, `of=${target}`, ...where]);
      }
    } finally {
      await tsimgfs(["umount", mountPoint]);
      await rm(ownDirectory, { recursive: true });
    }
    await expectClean(path, "qed");
    await expectDisk(path, "qed", expected);
  });

  itMainly("is refused for a QED image with a damaged table, which -r shows", async () => {
    const sample = await makeSample(directory, "old.qed", { format: "qed" });
    const image = await open(sample.path, "r+");
    const header = Buffer.alloc(64);
    await image.read(header, 0, 64, 0);
    const l1 = Number(header.readBigUInt64LE(40));
    // The second entry refers to the table of the first one.
    const entry = Buffer.alloc(8);
    await image.read(entry, 0, 8, l1);
    await image.write(entry, 0, 8, l1 + 8);
    await image.close();
    const before = await readFile(sample.path);
    expect(await refusedMount([sample.path])).toMatch(/old\.qed: L1 entry .*check.* -r\b/);
    expect((await readFile(sample.path)).equals(before)).toBe(true);
    await mounted([sample.path], { args: ["-r"] }, async (mount) => {
      await expectSameBytes(mount.device(sample.path), sample.expected, "QED");
    });
  });

  itOnce.each([
    { args: ["-U"], about: /-r\b/ },
    { args: ["-r", "-o", "rw"], about: /\brw\b/ },
    { args: ["--detect-zeroes", "unmap", "--discard", "ignore"], about: /--discard ignore/ },
  ])("is refused with $args, which contradict each other", async ({ args, about }) => {
    const path = join(directory, "contradiction.qcow2");
    await createImage(path, "qcow2", { size: MIB });
    expect(await refusedMount([path], { args })).toMatch(about);
  });
});
