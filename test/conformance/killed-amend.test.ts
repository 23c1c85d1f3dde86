// SIGKILL in the middle of what amend writes, and a host that becomes full: the image has the same disk and snapshots, and
// the next amend makes it what it is to be.

import { copyFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { killAtChange } from "../support/kill-at-write.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, refusalOf, tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";
import { withRoom } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const KILLS = byScale(1, 20);
/** Bytes that are left on the host. */
const ROOMS = byScale([65536], [0, 4096, 65536, 262144]);

/** An amendment of an image of `beforeAll`. */
interface Case {
  readonly image: "v3" | "v2" | "alone" | "data";
  readonly options: string;
  /** Of the image's file, as far as the test hears of them, before the kill. */
  readonly changesMax: number;
  /** Lines that `qemu-img info` then has. */
  readonly shown: RegExp;
}

const CASES: readonly Case[] = [
  { image: "v3", options: "refcount_bits=64", changesMax: 12, shown: /refcount bits: 64/ },
  { image: "alone", options: "refcount_bits=1", changesMax: 12, shown: /refcount bits: 1$/m },
  { image: "v3", options: "compat=0.10", changesMax: 12, shown: /compat: 0.10/ },
  { image: "v2", options: "compat=1.1", changesMax: 4, shown: /compat: 1.1/ },
  {
    image: "v2",
    options: "compat=1.1,refcount_bits=32,lazy_refcounts=on",
    changesMax: 12,
    shown: /lazy refcounts: true\n +refcount bits: 32/,
  },
  { image: "v3", options: "lazy_refcounts=on", changesMax: 3, shown: /lazy refcounts: true/ },
  {
    image: "v3",
    options: "backing_file=DIRECTORY/././base.raw,backing_fmt=raw",
    changesMax: 4,
    shown: /backing file: \S+\/\.\/\.\/base.raw\nbacking file format: raw/,
  },
  {
    image: "data",
    options: "data_file=DIRECTORY/././data-file",
    changesMax: 4,
    shown: /data file: \S+\/\.\/\.\/data-file$/m,
  },
  { image: "data", options: "data_file_raw=off", changesMax: 3, shown: /data file raw: false/ },
];

/** In the quick form, each of what takes effect in the same way once. */
const KILLED = CASES.filter((_, index) => byScale(index % 2 === 0, true));

/** In the quick form, new refcounts and another version. */
const FULL = CASES.filter((_, index) => byScale(index % 2 === 0 && index < 3, true));

describe("amend that is killed, or finds no space", () => {
  let directory = "";
  const random = new Random("killed-amend");
  const path = (name: string): string => join(directory, name);

  beforeAll(async () => {
    directory = await makeScratch("killed-amend");
    await createImage(path("base.raw"), "raw", { size: 4 * MIB });
    await qemuIo(path("base.raw"), "raw", ["write -q -P 7 0 4M"]);
    const backing = { file: path("base.raw"), format: "raw" } as const;
    const writes = ["write -q -P 1 0 1M", "write -q -z 1M 1M", "write -q -P 3 3M 300k"];
    for (const [name, compat] of [
      ["v3", "1.1"],
      ["v2", "0.10"],
    ] as const) {
      await createImage(path(name), "qcow2", { options: { cluster_size: 512, compat }, backing });
      await qemuIo(path(name), "qcow2", writes);
      await run("qemu-img", ["snapshot", "-q", "-c", "one", path(name)]);
      await qemuIo(path(name), "qcow2", ["write -q -P 2 512k 1M"]);
    }
    await createImage(path("alone"), "qcow2", { size: 4 * MIB, options: { cluster_size: 512 } });
    const data = { data_file: path("data-file"), data_file_raw: "on", cluster_size: 4096 };
    await createImage(path("data"), "qcow2", { size: 4 * MIB, options: data });
    for (const name of ["alone", "data"]) await qemuIo(path(name), "qcow2", writes);
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  function amend({ options }: Case, copy: string): string[] {
    return ["amend", "-o", options.replaceAll("DIRECTORY", directory), copy];
  }

  /** The disk and its snapshot are those of the image that is never changed. */
  async function expectSame({ image }: Case, copy: string): Promise<void> {
    expect((await checkImage(copy)).verdict).not.toBe("corrupt");
    await run("qemu-img", ["compare", "-q", path(image), copy]);
    if (!image.startsWith("v")) return;
    const raws = [path("wanted.raw"), path("found.raw")];
    for (const [index, file] of [path(image), copy].entries()) {
      await run("qemu-img", ["convert", "-l", "one", "-O", "raw", file, raws[index] ?? ""]);
    }
    await run("cmp", raws);
  }

  async function expectAmended(what: Case, copy: string): Promise<void> {
    await tsimgfs(amend(what, copy));
    await expectClean(copy);
    await expectSame(what, copy);
    expect((await run("qemu-img", ["info", copy])).stdout).toMatch(what.shown);
  }

  it.each(KILLED)(
    "-o $options leaves the disk, and the next one clears up: $image",
    async (what) => {
      const copy = path("copy.qcow2");
      for (let kill = 0; kill < KILLS; kill++) {
        await copyFile(path(what.image), copy);
        await killAtChange(amend(what, copy), copy, random.between(1, what.changesMax));
        await expectSame(what, copy);
        await expectAmended(what, copy);
      }
    },
  );

  describe.skipIf(!IS_ROOT)("on a full host (needs root)", () => {
    it.each(FULL)("-o $options leaves the disk: $image", async (what) => {
      for (const room of ROOMS) {
        await withRoom(path(what.image), room, async (copy, makeRoom) => {
          const result = await attemptTsimgfs(amend(what, copy));
          if (result.status !== 0) expect(refusalOf(result)).toMatch(/: \S+: [^\n]*ENOSPC/);
          await expectSame(what, copy);
          await expectClean(copy);
          await makeRoom();
          await expectAmended(what, copy);
        });
      }
    });
  });
});
