// SIGKILL in the middle of what a command writes, and a host that becomes full: the image stays what it was, or becomes
// what it is to be.

import { copyFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import {
  createEncryptedImage,
  encryptedArguments,
  PASSPHRASE,
} from "../support/encrypted-image.ts";
import { withProgram } from "../support/foreground.ts";
import { atChange } from "../support/kill-at-write.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { MAIN } from "../support/repository.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const KILLS = byScale(1, 20);
/** Of a file, as far as the test hears of them, before the kill. */
const CHANGES_MAX = 12;
const NEW = "another passphrase";

describe("a command that is killed, or finds no space", () => {
  let directory = "";
  const random = new Random("killed-commands");
  const path = (name: string): string => join(directory, name);

  beforeAll(async () => {
    directory = await makeScratch("killed-commands");
    await createImage(path("base.raw"), "raw", { size: 4 * MIB });
    await qemuIo(path("base.raw"), "raw", ["write -q -P 7 0 4M"]);
    const backing = { file: path("base.raw"), format: "raw" } as const;
    const image = path("image.qcow2");
    await createImage(image, "qcow2", { options: { cluster_size: 512 }, backing });
    await qemuIo(image, "qcow2", [
      "write -q -P 1 0 1M",
      "write -q -z 1M 1M",
      "write -q -z -u 3M 1M",
    ]);
    await run("qemu-img", ["snapshot", "-q", "-c", "one", image]);
    await qemuIo(image, "qcow2", ["write -q -P 2 512k 1M"]);
    for (const [name, passphrase] of [
      ["old", PASSPHRASE],
      ["new", NEW],
    ] as const) {
      await writeFile(path(name), passphrase);
    }
    const luks = ["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.key-secret=key"];
    await createEncryptedImage(path("luks.qcow2"), luks, String(4 * MIB));
    await run("qemu-io", ["-c", "write -P 7 0 4M", ...encryptedArguments(path("luks.qcow2"))]);
    const bitmaps = path("bitmaps.qcow2");
    await createImage(bitmaps, "qcow2", { size: 8 * MIB });
    await run("qemu-img", ["bitmap", "--add", "-g", "512", bitmaps, "fine"]);
    await run("qemu-img", ["bitmap", "--add", bitmaps, "coarse"]);
    await qemuIo(bitmaps, "qcow2", ["write -q -P 3 1M 3M", "write -q -P 4 7000k 300k"]);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  async function killed(args: readonly string[], file: string): Promise<void> {
    await withProgram(process.execPath, [MAIN, ...args], async (program) => {
      const watcher = atChange(file, random.between(1, CHANGES_MAX), () => {
        if (program.isRunning) program.kill("SIGKILL");
      });
      try {
        expect([0, "SIGKILL"]).toContain(await program.end(60_000));
      } finally {
        watcher.close();
      }
    });
  }

  /** The disk and its snapshot are those of the image that is never changed. */
  async function expectSame(copy: string): Promise<void> {
    expect((await checkImage(copy)).verdict).not.toBe("corrupt");
    await run("qemu-img", ["compare", "-q", path("image.qcow2"), copy]);
    const raws = [path("wanted.raw"), path("found.raw")];
    for (const [index, image] of [path("image.qcow2"), copy].entries()) {
      const convert = ["convert", "-l", "one", "-O", "raw", image];
      await run("qemu-img", [...convert, raws[index] ?? ""]);
    }
    await run("cmp", raws);
  }

  const AMENDMENTS = [["refcount_bits=64"], ["compat=0.10"]] as const;

  it.each(AMENDMENTS)("amend -o %s leaves the disk, and the next one clears up", async (option) => {
    const copy = path("copy.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await copyFile(path("image.qcow2"), copy);
      const args = ["amend", "-o", option, copy];
      await killed(args, copy);
      await expectSame(copy);
      await tsimgfs(args);
      await expectClean(copy);
      await expectSame(copy);
    }
  });

  const opens = async (image: string, passphrase: string): Promise<boolean> => {
    const source = encryptedArguments(image, passphrase);
    return (await attempt("qemu-io", ["-r", "-c", "read -P 7 0 4M", ...source])).status === 0;
  };
  const amendKeys = (image: string, ...options: readonly string[]): string[] => {
    const secrets = ["--secret", path("old"), "-o"];
    return ["amend", ...secrets, options.map((option) => `encrypt.${option}`).join(","), image];
  };
  const added = (image: string): string[] =>
    amendKeys(image, "state=active", `new-secret=${path("new")}`, "iter-time=0");
  const removed = (image: string): string[] =>
    amendKeys(image, "state=inactive", `old-secret=${path("old")}`);

  it("amend leaves a passphrase that opens the image", async () => {
    const copy = path("copy.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await copyFile(path("luks.qcow2"), copy);
      await killed(added(copy), copy);
      expect(await opens(copy, PASSPHRASE)).toBe(true);
      await run("qemu-img", ["check", "-q", ...encryptedArguments(copy)]);
      if (!(await opens(copy, NEW))) await tsimgfs(added(copy));
      await killed(removed(copy), copy);
      expect(await opens(copy, NEW)).toBe(true);
      await run("qemu-img", ["check", "-q", ...encryptedArguments(copy, NEW)]);
    }
  });

  /** Bitmaps of a target are those of the source, or cannot be taken for them. */
  async function expectNoneStale(target: string): Promise<void> {
    expect((await checkImage(target)).verdict).not.toBe("corrupt");
    const wanted = (await readBitmaps(path("bitmaps.qcow2"))) ?? [];
    for (const bitmap of (await readBitmaps(target)) ?? []) {
      if (!bitmap.inUse) expect(wanted).toContainEqual(bitmap);
    }
  }

  const converted = (target: string): string[] => [
    "convert",
    "--bitmaps",
    "-n",
    "-O",
    "qcow2",
    path("bitmaps.qcow2"),
    target,
  ];

  it("convert --bitmaps leaves no bitmap that lacks something", async () => {
    const target = path("target.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await createImage(target, "qcow2", { size: 8 * MIB, options: { cluster_size: 512 } });
      await killed(converted(target), target);
      await expectNoneStale(target);
      await qemuIo(target, "qcow2", ["read -q 0 8M"]);
      await tsimgfs(["io", "-c", "write -q 0 512", target]);
      await expectClean(target);
    }
  });

  describe.skipIf(!IS_ROOT)("on a full host (needs root)", () => {
    /** Calls `body` with a copy on a file system that has `room` bytes left. */
    async function withRoom(
      original: string,
      room: number,
      body: (copy: string) => Promise<void>,
    ): Promise<void> {
      await withTmpfs(64 * MIB, async (tmpfs) => {
        const copy = join(tmpfs.directory, "copy.qcow2");
        await copyFile(original, copy);
        const { stdout } = await run("df", ["--output=used", "-B1", tmpfs.directory]);
        await tmpfs.resize(Number(stdout.split("\n")[1]) + room);
        await body(copy);
        await tmpfs.resize(64 * MIB);
      });
    }

    it.each(AMENDMENTS)("amend -o %s leaves the disk", async (option) => {
      for (const room of [4096, 65536]) {
        await withRoom(path("image.qcow2"), room, async (copy) => {
          const { status, stderr } = await attemptTsimgfs(["amend", "-o", option, copy]);
          expect([0, 1]).toContain(status);
          if (status === 1) expect(stderr).toMatch(/^tsimgfs: \S+: [^\n]*ENOSPC[^\n]*\n$/);
          await expectSame(copy);
          await expectClean(copy);
        });
      }
    });

    it("amend leaves a passphrase that opens the image", async () => {
      await withRoom(path("luks.qcow2"), 0, async (copy) => {
        const { status } = await attemptTsimgfs(added(copy));
        expect(await opens(copy, PASSPHRASE)).toBe(true);
        expect(await opens(copy, NEW)).toBe(status === 0);
        await run("qemu-img", ["check", "-q", ...encryptedArguments(copy)]);
      });
    });

    it("convert --bitmaps leaves no bitmap that lacks something", async () => {
      const empty = path("empty.qcow2");
      await createImage(empty, "qcow2", { size: 8 * MIB, options: { cluster_size: 4096 } });
      const full = path("full.qcow2");
      await copyFile(empty, full);
      await tsimgfs(converted(full));
      const needed = (await stat(full)).blocks * 512 - (await stat(empty)).blocks * 512;
      for (const missing of [2 * MIB, 16384, 4096]) {
        await withRoom(empty, needed - missing, async (target) => {
          const { status, stderr } = await attemptTsimgfs(converted(target));
          expect(status).toBe(1);
          expect(stderr).toMatch(/ENOSPC/);
          await expectNoneStale(target);
          await expectClean(target);
        });
      }
    });
  });
});
