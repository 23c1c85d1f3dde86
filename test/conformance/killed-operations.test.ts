// SIGKILL in the middle of what commands write that change the structure of an image, and a host that becomes full: it is what
// it was, or what qemu-img makes of it, and the same command does it then.

import { createHash } from "node:crypto";
import { copyFile, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { harmIn, qemuCheck } from "../support/check-oracle.ts";
import { DamageImage } from "../support/damage-image.ts";
import { REPAIRABLE } from "../support/damage-kinds.ts";
import { killAtChange } from "../support/kill-at-write.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";
import { withRoom } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const KILLS = byScale(1, 20);
/** Bytes that are left on the host. */
const ROOMS = byScale([4096], [0, 4096, 16384, 65536]);

/** The field of the header. */
const REFCOUNT_TABLE_CLUSTERS_AT = 56;

/** A command that we and qemu-img understand alike, without the name of the image, which comes where `IMAGE` stands. */
interface Command {
  readonly image: "snapshots" | "bitmaps" | "damaged";
  readonly line: string;
  /** Of the image's file, as far as the test hears of them, before the kill. */
  readonly changesMax: number;
  /** Bytes of the disk that stay: what is cut off becomes zeros before the size changes. Default: all. */
  readonly kept?: number;
}

const COMMANDS: readonly Command[] = [
  { image: "snapshots", line: "snapshot -c new IMAGE", changesMax: 8 },
  { image: "snapshots", line: "snapshot -a one IMAGE", changesMax: 8 },
  { image: "snapshots", line: "snapshot -d one IMAGE", changesMax: 8 },
  { image: "snapshots", line: "resize -q IMAGE 64M", changesMax: 8 },
  { image: "bitmaps", line: "bitmap --add -g 512 IMAGE new", changesMax: 8 },
  { image: "bitmaps", line: "bitmap --remove IMAGE fine", changesMax: 8 },
  { image: "bitmaps", line: "bitmap --clear IMAGE fine", changesMax: 6 },
  { image: "bitmaps", line: "bitmap --merge fine IMAGE off", changesMax: 6 },
  { image: "bitmaps", line: "bitmap --enable IMAGE off", changesMax: 3 },
  { image: "bitmaps", line: "bitmap --disable IMAGE fine", changesMax: 3 },
  { image: "bitmaps", line: "resize -q --shrink IMAGE 1M", changesMax: 8, kept: MIB },
  { image: "damaged", line: "check -q -r all IMAGE", changesMax: 8 },
];

/** In the quick form, each kind of change once. */
const KILLED = byScale(
  COMMANDS.filter(({ line }) => /-d one|--merge|--shrink|-r all/.test(line)),
  COMMANDS,
);

/** In the quick form, what needs most room. */
const FULL = byScale(
  COMMANDS.filter(({ line }) => /-a one|-r all/.test(line)),
  COMMANDS,
);

/** What an image is, by QEMU. */
interface State {
  readonly disk: string;
  readonly snapshots: readonly string[];
  /** Those that may be used. */
  readonly bitmaps: readonly string[];
}

describe("a command that is killed, or finds no space", () => {
  let directory = "";
  const random = new Random("killed-operations");
  const path = (name: string): string => join(directory, name);

  beforeAll(async () => {
    directory = await makeScratch("killed-operations");
    await createImage(path("base.raw"), "raw", { size: 4 * MIB });
    await qemuIo(path("base.raw"), "raw", ["write -q -P 7 0 4M"]);
    const backing = { file: path("base.raw"), format: "raw" } as const;
    const writes = ["write -q -P 1 0 1M", "write -q -z 1M 1M", "write -q -P 3 3M 300k"];
    const options = { cluster_size: 512 };
    await createImage(path("snapshots"), "qcow2", { options, backing });
    await qemuIo(path("snapshots"), "qcow2", writes);
    for (const name of ["one", "two"]) {
      await run("qemu-img", ["snapshot", "-q", "-c", name, path("snapshots")]);
      await qemuIo(path("snapshots"), "qcow2", [`write -q -P 2 ${random.below(2)}M 1M`]);
    }
    await createImage(path("bitmaps"), "qcow2", { size: 4 * MIB, options });
    const add = ["bitmap", "--add", "-g", "512"];
    await run("qemu-img", [...add, path("bitmaps"), "fine"]);
    await run("qemu-img", [...add, "--disable", path("bitmaps"), "off"]);
    await qemuIo(path("bitmaps"), "qcow2", writes);
    // Larger clusters: in those of one sector, every block is aligned.
    await createImage(path("damaged"), "qcow2", {
      size: 4 * MIB,
      options: { cluster_size: 4096 },
    });
    await qemuIo(path("damaged"), "qcow2", writes);
    const damaged = new DamageImage(await readFile(path("damaged")));
    expect(REPAIRABLE["a refcount block not aligned"]?.(damaged, random)).toBe(true);
    await writeFile(path("damaged"), damaged.bytes);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  const argumentsOf = ({ line }: Command, image: string): string[] =>
    line.split(" ").map((word) => (word === "IMAGE" ? image : word));

  /** @param kept bytes that are looked at; default: all */
  async function contentOf(
    image: string,
    more: readonly string[] = [],
    kept?: number,
  ): Promise<string> {
    const raw = path("content.raw");
    await run("qemu-img", ["convert", ...more, "-f", "qcow2", "-O", "raw", image, raw]);
    const bytes = (await readFile(raw)).subarray(0, kept);
    return createHash("sha256").update(bytes).digest("hex");
  }

  async function stateOf({ kept }: Command, image: string): Promise<State> {
    const { stdout } = await run("qemu-img", ["snapshot", "-l", image]);
    const names = stdout
      .split("\n")
      .slice(2, -1)
      .map((line) => line.split(/\s+/)[1] ?? "");
    const snapshots: string[] = [];
    for (const name of names) snapshots.push(`${name} ${await contentOf(image, ["-l", name])}`);
    const bitmaps = (await readBitmaps(image)) ?? [];
    return {
      disk: await contentOf(image, [], kept),
      snapshots,
      bitmaps: bitmaps.filter(({ inUse }) => !inUse).map((bitmap) => JSON.stringify(bitmap)),
    };
  }

  /** What was there, and what qemu-img makes of it. */
  async function outcomesOf(command: Command): Promise<readonly [State, State]> {
    const copy = path("theirs.qcow2");
    await copyFile(path(command.image), copy);
    // It tells by the status that there was something to repair.
    await attempt("qemu-img", argumentsOf(command, copy));
    return [await stateOf(command, path(command.image)), await stateOf(command, copy)];
  }

  /** The image is in one of the states; bitmaps that are in use do not count. */
  async function expectOneOf(
    [before, after]: readonly [State, State],
    command: Command,
    copy: string,
  ): Promise<void> {
    const { image } = command;
    if (image === "damaged") {
      const known = harmIn(await qemuCheck(path(image), "qcow2"));
      const found = harmIn(await qemuCheck(copy, "qcow2"));
      expect(found.filter((harm) => !known.includes(harm))).toEqual([]);
    } else expect((await checkImage(copy)).verdict).not.toBe("corrupt");
    const { disk, snapshots, bitmaps } = await stateOf(command, copy);
    expect([before, after].map((state) => [state.disk, state.snapshots])).toContainEqual([
      disk,
      snapshots,
    ]);
    for (const bitmap of bitmaps) expect([...before.bitmaps, ...after.bitmaps]).toContain(bitmap);
  }

  /** Once more, unless it is done; a bitmap that is in use can be removed only. */
  async function expectDone(
    [, after]: readonly [State, State],
    command: Command,
    copy: string,
  ): Promise<void> {
    const { status } = await attemptTsimgfs(argumentsOf(command, copy));
    if (command.image === "bitmaps") {
      await tsimgfs(["io", "-c", "read -q 0 512", copy]);
      expect((await checkImage(copy)).verdict).not.toBe("corrupt");
      return;
    }
    expect([0, 1]).toContain(status);
    await tsimgfs(["check", "-q", "-r", "all", copy]);
    await expectClean(copy);
    expect((await stateOf(command, copy)).disk).toEqual(after.disk);
  }

  it.each(KILLED)("$line", async (command) => {
    const outcomes = await outcomesOf(command);
    const copy = path("copy.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await copyFile(path(command.image), copy);
      const args = argumentsOf(command, copy);
      await killAtChange(args, copy, random.between(1, command.changesMax));
      await expectOneOf(outcomes, command, copy);
      await expectDone(outcomes, command, copy);
    }
  });

  /** One refcount table of 64 entries, for 64 clusters each, counts 2 MiB, which are nearly full. */
  async function makeGrowing(): Promise<string> {
    const image = path("growing");
    const options = { cluster_size: 512, refcount_bits: 64 };
    await createImage(image, "qcow2", { size: 5 * MIB, options });
    await qemuIo(image, "qcow2", ["write -q -P 5 0 1900k"]);
    return image;
  }
  const GROW = "write -q -P 5 0 5M";

  /** What was there, and zeros or what was written; once more, and all is there. */
  async function expectGrown(copy: string): Promise<void> {
    expect((await checkImage(copy)).verdict).not.toBe("corrupt");
    await qemuIo(copy, "qcow2", ["read -q -P 5 0 1900k"]);
    await run("qemu-img", ["convert", "-O", "raw", copy, path("grown.raw")]);
    const found = await readFile(path("grown.raw"));
    expect(found.every((byte) => byte === 0 || byte === 5)).toBe(true);
    await tsimgfs(["io", "-c", GROW, copy]);
    await expectClean(copy);
    await qemuIo(copy, "qcow2", ["read -q -P 5 0 5M"]);
    expect((await readFile(copy)).readUInt32BE(REFCOUNT_TABLE_CLUSTERS_AT)).toBeGreaterThan(1);
  }

  it("writes that need a larger refcount table", async () => {
    const image = await makeGrowing();
    const copy = path("copy.qcow2");
    for (let kill = 0; kill < KILLS; kill++) {
      await copyFile(image, copy);
      await killAtChange(["io", "-c", GROW, copy], copy, random.between(1, 12));
      await expectGrown(copy);
    }
  });

  describe.skipIf(!IS_ROOT)("on a full host (needs root)", () => {
    it("writes that need a larger refcount table", async () => {
      const image = await makeGrowing();
      for (const room of byScale([100_000], [4096, 100_000, 1_000_000])) {
        await withRoom(image, room, async (copy, makeRoom) => {
          const { status, stderr } = await attemptTsimgfs(["io", "-c", GROW, copy]);
          expect([status, stderr]).toEqual([1, expect.stringContaining("ENOSPC")]);
          await makeRoom();
          await expectGrown(copy);
        });
      }
    });

    it.each(FULL)("$line", async (command) => {
      const outcomes = await outcomesOf(command);
      for (const room of ROOMS) {
        await withRoom(path(command.image), room, async (copy, makeRoom) => {
          const result = await attemptTsimgfs(argumentsOf(command, copy));
          if (result.status !== 0) expect(refusalOf(result)).toMatch(/: \S+: [^\n]*ENOSPC/);
          await expectOneOf(outcomes, command, copy);
          await makeRoom();
          await expectDone(outcomes, command, copy);
        });
      }
    });

    it("commit leaves the disk, and what is in the base", async () => {
      await createImage(path("base.qcow2"), "qcow2", { size: 4 * MIB });
      await qemuIo(path("base.qcow2"), "qcow2", ["write -q -P 1 0 1M"]);
      await withRoom(path("base.qcow2"), 500_000, async (base, makeRoom) => {
        const overlay = path("overlay.qcow2");
        await createImage(overlay, "qcow2", { backing: { file: base, format: "qcow2" } });
        await qemuIo(overlay, "qcow2", ["write -q -P 9 512k 3M"]);
        const disk = await contentOf(overlay);
        const { status, stderr } = await attemptTsimgfs(["commit", "-q", overlay]);
        expect([status, stderr]).toEqual([1, expect.stringMatching(/^tsimgfs: \S+: .*ENOSPC/)]);
        await expectClean(base);
        expect(await contentOf(overlay)).toBe(disk);
        await makeRoom();
        await tsimgfs(["commit", "-q", overlay]);
        expect(await contentOf(base)).toBe(disk);
        await expectClean(base);
        await expectClean(overlay);
      });
    });

    it("rebase leaves the disk", async () => {
      await createImage(path("new.raw"), "raw", { size: 4 * MIB });
      await withRoom(path("snapshots"), 100_000, async (original, makeRoom) => {
        const overlay = join(original, "../overlay.qcow2");
        const backing = { file: path("base.raw"), format: "raw" } as const;
        await createImage(overlay, "qcow2", { backing, options: { cluster_size: 4096 } });
        const disk = await contentOf(overlay);
        const rebase = ["rebase", "-q", "-F", "raw", "-b", path("new.raw"), overlay];
        const { status, stderr } = await attemptTsimgfs(rebase);
        expect([status, stderr]).toEqual([1, expect.stringMatching(/^tsimgfs: \S+: .*ENOSPC/)]);
        await expectClean(overlay);
        expect(await contentOf(overlay)).toBe(disk);
        await makeRoom();
        await tsimgfs(rebase);
        await expectClean(overlay);
        expect(await contentOf(overlay)).toBe(disk);
      });
    });
  });
});
