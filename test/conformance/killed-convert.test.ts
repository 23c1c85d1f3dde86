// SIGKILL in the middle of what convert writes, and a host that becomes full: nothing but leaks is left in the target, and no
// bitmap that lacks something.

import { existsSync, readFileSync } from "node:fs";
import { copyFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { killAtChange } from "../support/kill-at-write.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";
import { withRoom } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const KILLS = byScale(1, 20);
/** Both threads have to be at it when the host is full, which they are now and then. */
const FULL_ROUNDS = byScale(4, 40);
/** Of a file, as far as the test hears of them, before the kill. */
const CHANGES_MAX = 12;

const TARGETS = [
  { name: "plain", args: ["--bitmaps", "-o", "cluster_size=512"] },
  { name: "compressed", args: ["--bitmaps", "-c", "-o", "cluster_size=4k"] },
  { name: "of version 2", args: ["-o", "compat=0.10,cluster_size=4k"] },
  { name: "QED", args: ["-O", "qed", "-o", "cluster_size=4k"] },
];

/** In the quick form, what has bitmaps. */
const NEW_TARGETS = TARGETS.filter(({ args }) => byScale(args.includes("--bitmaps"), true));

/** The magic is written last: until then there is no image, to nobody. */
function isMade(path: string): boolean {
  if (!existsSync(path)) return false;
  const head = readFileSync(path).subarray(0, 4);
  return head.length === 4 && head.readUInt32BE(0) !== 0;
}

describe("convert that is killed, or finds no space", () => {
  let directory = "";
  const random = new Random("killed-convert");
  const path = (name: string): string => join(directory, name);

  beforeAll(async () => {
    directory = await makeScratch("killed-convert");
    const bitmaps = path("bitmaps.qcow2");
    await createImage(bitmaps, "qcow2", { size: 8 * MIB });
    await run("qemu-img", ["bitmap", "--add", "-g", "512", bitmaps, "fine"]);
    await run("qemu-img", ["bitmap", "--add", bitmaps, "coarse"]);
    await qemuIo(bitmaps, "qcow2", ["write -q -P 3 1M 3M", "write -q -P 4 7000k 300k"]);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  const killed = (args: readonly string[], file: string): Promise<void> =>
    killAtChange(args, file, random.between(1, CHANGES_MAX));

  /** Bitmaps of a target are those of the source, or cannot be taken for them. */
  async function expectNoneStale(target: string): Promise<void> {
    expect((await checkImage(target)).verdict).not.toBe("corrupt");
    const wanted = (await readBitmaps(path("bitmaps.qcow2"))) ?? [];
    for (const bitmap of (await readBitmaps(target)) ?? []) {
      if (!bitmap.inUse) expect(wanted).toContainEqual(bitmap);
    }
  }

  const intoThere = (target: string): string[] => {
    return ["convert", "--bitmaps", "-n", "-O", "qcow2", path("bitmaps.qcow2"), target];
  };

  it("leaves no bitmap that lacks something in a target that is there", async () => {
    const target = path("target.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await createImage(target, "qcow2", { size: 8 * MIB, options: { cluster_size: 512 } });
      await killed(intoThere(target), target);
      await expectNoneStale(target);
      await qemuIo(target, "qcow2", ["read -q 0 8M"]);
      await tsimgfs(["io", "-c", "write -q 0 512", target]);
      await expectClean(target);
    }
  });

  it.each(NEW_TARGETS)(
    "leaves no target, none yet, or leaks at most in a new one: $name",
    async ({ args }) => {
      const format = args.includes("qed") ? "qed" : "qcow2";
      const target = path("new");
      for (let kill = 0; kill < KILLS; kill++) {
        const convert = ["convert", "-O", format, ...args, path("bitmaps.qcow2"), target];
        await killed(convert, target);
        if (isMade(target)) {
          expect((await checkImage(target, format)).verdict).not.toBe("corrupt");
          const found = args.includes("--bitmaps") ? ((await readBitmaps(target)) ?? []) : [];
          // They come last: where they are, all is.
          if (found.length > 0) {
            expect(found).toEqual(await readBitmaps(path("bitmaps.qcow2")));
            await run("qemu-img", ["compare", "-q", path("bitmaps.qcow2"), target]);
          }
        }
        await tsimgfs(convert);
        await expectClean(target, format);
        await run("qemu-img", ["compare", "-q", path("bitmaps.qcow2"), target]);
        await rm(target);
      }
    },
  );

  describe.skipIf(!IS_ROOT)("on a full host (needs root)", () => {
    it("convert leaves no leaks, whichever of its threads finds that out", async () => {
      const source = path("noise.raw");
      await writeFile(source, random.bytes(12 * MIB));
      const empty = path("empty.qcow2");
      await createImage(empty, "qcow2", { size: 12 * MIB });
      for (let round = 0; round < FULL_ROUNDS; round++) {
        await withRoom(empty, 7 * MIB, async (target) => {
          const convert = ["convert", "-n", "-m", "2", "-O", "qcow2", source, target];
          await expectRefusal(convert, [
            /ENOSPC.*; \S+ was there before, and is not complete now$/,
          ]);
          await expectClean(target);
        });
      }
    });

    it("convert --bitmaps leaves no bitmap that lacks something", async () => {
      const empty = path("empty.qcow2");
      await createImage(empty, "qcow2", { size: 8 * MIB, options: { cluster_size: 4096 } });
      const full = path("full.qcow2");
      await copyFile(empty, full);
      await tsimgfs(intoThere(full));
      const needed = (await stat(full)).blocks * 512 - (await stat(empty)).blocks * 512;
      for (const missing of [2 * MIB, 16384, 4096]) {
        await withRoom(empty, needed - missing, async (target) => {
          const { status, stderr } = await attemptTsimgfs(intoThere(target));
          expect(status).toBe(1);
          expect(stderr).toMatch(/ENOSPC/);
          await expectNoneStale(target);
          await expectClean(target);
        });
      }
    });
  });
});
