// Ctrl-C in the middle of what a command changes in an image: it is valid, shows what it has to, has leaked clusters at
// the most, and nobody uses it.

import { copyFileSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { readBitmaps } from "../support/bitmap-reader.ts";
import { interrupted } from "../support/interrupted.ts";
import { asRecord } from "../support/json.ts";
import { convertToRaw, createImage, imageInfo, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";
import { checkImage, expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
const MOMENTS = byScale(1, 6);
const SIZE = 8 * MIB;
/** What snapshots and overlays have of their own is here, and what bench writes. */
const OWN = 2 * MIB;

const random = new Random("interrupted-writes");
const lower = random.bytes(SIZE);
const upper = Buffer.from(lower);
random.bytes(OWN).copy(upper, 3 * MIB);

let directory = "";
const path = (name: string): string => join(directory, name);

beforeAll(async () => {
  directory = await makeScratch("interrupted-writes");
  writeFileSync(path("lower.raw"), lower);
  writeFileSync(path("upper.raw"), upper);
  const options = ["-o", "cluster_size=4k"];
  await run("qemu-img", [
    "convert",
    "-O",
    "qcow2",
    ...options,
    path("lower.raw"),
    path("base.qcow2"),
  ]);
  writeFileSync(path("own"), upper.subarray(3 * MIB, 3 * MIB + OWN));
  copyFileSync(path("base.qcow2"), path("other.qcow2"));
  for (const [name, base] of [
    ["overlay.qcow2", "base.qcow2"],
    ["committed.qcow2", "other.qcow2"],
  ] as const) {
    await createImage(path(name), "qcow2", {
      options: { cluster_size: 4096 },
      backing: { file: path(base), format: "qcow2" },
    });
    await qemuIo(path(name), "qcow2", [`write -q -s ${path("own")} 3M ${OWN}`]);
  }
  copyFileSync(path("base.qcow2"), path("snapshot.qcow2"));
  await run("qemu-img", ["snapshot", "-c", "one", path("snapshot.qcow2")]);
  await qemuIo(path("snapshot.qcow2"), "qcow2", [`write -q -s ${path("own")} 3M ${OWN}`]);
  copyFileSync(path("base.qcow2"), path("bitmaps.qcow2"));
  for (const name of ["one", "two"]) {
    await run("qemu-img", ["bitmap", "--add", "-g", "512", path("bitmaps.qcow2"), name]);
    if (name === "one") {
      await qemuIo(path("bitmaps.qcow2"), "qcow2", [`write -q -s ${path("own")} 3M ${OWN}`]);
    }
  }
});
afterAll(async () => {
  await rm(directory, { recursive: true, force: true });
});

let before: readonly string[] = [];
beforeEach(() => {
  before = readdirSync(directory);
});

/** A fresh copy of an image. */
function copyOf(name: string): string {
  const copy = path("copy.qcow2");
  copyFileSync(path(name), copy);
  return copy;
}

/**
 * Runs a command on a copy of an image, which a signal stops after some changes of a file, as often as the scale has it;
 * and looks after each.
 */
async function atMoments(
  original: string,
  args: (copy: string) => readonly string[],
  look: (copy: string, stopped: boolean) => Promise<void>,
  { changes, file }: { changes: number; file?: string },
): Promise<void> {
  for (let moment = 0; moment < MOMENTS; moment++) {
    const copy = copyOf(original);
    const at = { file: file ?? copy, changes: random.between(1, changes) };
    const { status } = await interrupted(args(copy), at);
    expect([0, 130, "SIGINT"]).toContain(status);
    await look(copy, status !== 0);
    rmSync(copy);
    expect(readdirSync(directory)).toEqual(before);
  }
}

/** What an image is by qemu-img: intact, and of which disk. */
async function expectShows(image: string, ...wanted: readonly Buffer[]): Promise<void> {
  const { verdict, output } = await checkImage(image);
  expect(verdict, output).not.toBe("corrupt");
  const flat = path("flat.raw");
  await convertToRaw(image, "qcow2", flat);
  const found = readFileSync(flat);
  rmSync(flat);
  expect(wanted.some((bytes) => bytes.equals(found))).toBe(true);
}

async function virtualSizeOf(image: string): Promise<number> {
  return Number(asRecord(await imageInfo([image]))["virtual-size"]);
}

describe("Ctrl-C leaves an image as it was, or as it is to be", () => {
  it.each(["metadata", "falloc", "full"])(
    "resize --preallocation=%s: nothing is kept for what is not there",
    async (mode) => {
      const growth = 48 * MIB;
      const longer = Buffer.concat([lower, Buffer.alloc(growth)]);
      const stored = statSync(path("base.qcow2")).blocks * 512;
      await atMoments(
        "base.qcow2",
        (copy) => ["resize", "-q", `--preallocation=${mode}`, copy, `+${growth}`],
        async (copy, stopped) => {
          await expectClean(copy);
          await expectShows(copy, stopped ? lower : longer);
          if (stopped) expect(statSync(copy).blocks * 512).toBeLessThan(stored + MIB);
        },
        { changes: 20 },
      );
    },
  );

  it("resize --shrink", async () => {
    await atMoments(
      "base.qcow2",
      (copy) => ["resize", "-q", "--shrink", copy, "1M"],
      async (copy, stopped) => {
        await expectClean(copy);
        expect(await virtualSizeOf(copy)).toBe(stopped ? SIZE : MIB);
        // Of what would have been cut off, a part may be zeros.
        await qemuIo(copy, "qcow2", ["read -q 0 1M"]);
        await run("qemu-img", ["resize", "-q", "--shrink", copy, "1M"]);
        await expectShows(copy, lower.subarray(0, MIB));
      },
      { changes: 6 },
    );
  });

  it.each([
    ["-c", "two", [lower]],
    ["-a", "one", [upper, lower]],
    ["-d", "one", [upper]],
  ] as const)("snapshot %s", async (action, name, disks) => {
    const original = action === "-c" ? "base.qcow2" : "snapshot.qcow2";
    await atMoments(
      original,
      (copy) => ["snapshot", action, name, copy],
      async (copy) => {
        await expectShows(copy, ...disks);
        // The next one gives back what is left.
        await tsimgfs(["snapshot", "-c", "next", copy]);
        await tsimgfs(["snapshot", "-d", "next", copy]);
        await tsimgfs(["check", "-q", "-r", "leaks", copy]);
        await expectClean(copy);
      },
      { changes: 8 },
    );
  });

  it("bitmap --merge: the old bits, or the new ones", async () => {
    const wanted = await readBitmaps(path("bitmaps.qcow2"));
    const merged = copyOf("bitmaps.qcow2");
    await run("qemu-img", ["bitmap", "--merge", "one", merged, "two"]);
    const next = await readBitmaps(merged);
    rmSync(merged);
    expect(next).not.toEqual(wanted);
    await atMoments(
      "bitmaps.qcow2",
      (copy) => ["bitmap", "--merge", "one", copy, "two"],
      async (copy) => {
        await expectShows(copy, upper);
        const found = await readBitmaps(copy);
        for (const { name, inUse, set } of found ?? []) {
          const choices = [wanted, next].map((list) => list?.find((one) => one.name === name)?.set);
          // Who does not know any more what has changed says so.
          if (!inUse) expect(choices).toContainEqual(set);
        }
      },
      { changes: 6 },
    );
  });

  it.each(["compat=0.10", "refcount_bits=64", "lazy_refcounts=on"])(
    "amend -o %s",
    async (option) => {
      await atMoments(
        "snapshot.qcow2",
        (copy) => ["amend", "-q", "-o", option, copy],
        async (copy) => {
          await expectShows(copy, upper);
          await tsimgfs(["amend", "-q", "-o", option, copy]);
          await expectClean(copy);
        },
        { changes: 8 },
      );
    },
  );
});

describe("Ctrl-C leaves chains that show what they did", () => {
  it("rebase, and its second run does the rest", async () => {
    const args = (copy: string): readonly string[] => ["rebase", "-b", "", copy];
    await atMoments(
      "overlay.qcow2",
      args,
      async (copy) => {
        await expectShows(copy, upper);
        await tsimgfs(args(copy));
        await expectClean(copy);
        await expectShows(copy, upper);
      },
      { changes: 20 },
    );
  });

  it("rebase -u: the old name, or the new one", async () => {
    const other = path("other.qcow2");
    await atMoments(
      "overlay.qcow2",
      (copy) => ["rebase", "-u", "-b", other, "-F", "qcow2", copy],
      async (copy) => {
        await expectClean(copy);
        const info = asRecord(await imageInfo([copy]));
        expect([path("base.qcow2"), other]).toContain(info["backing-filename"]);
        await expectShows(copy, upper);
      },
      { changes: 2 },
    );
  });

  it("commit, into the base and then out of the image", async () => {
    const base = path("other.qcow2");
    for (const file of [base, undefined]) {
      await atMoments(
        "committed.qcow2",
        (copy) => ["commit", "-q", copy],
        async (copy) => {
          await expectShows(copy, upper);
          expect((await checkImage(base)).verdict).not.toBe("corrupt");
          await tsimgfs(["commit", "-q", copy]);
          await expectClean(base);
          await expectShows(base, upper);
          copyFileSync(path("base.qcow2"), base);
        },
        { changes: 12, ...(file !== undefined && { file }) },
      );
    }
  });
});

describe("Ctrl-C leaves", () => {
  it("bench -w: what was written, and what was not", async () => {
    const size = 4096;
    await atMoments(
      "base.qcow2",
      (copy) => ["bench", "-q", "-w", "--pattern", "171", "-s", `${size}`, "-c", "2000", copy],
      async (copy) => {
        await expectClean(copy);
        const flat = path("flat.raw");
        await convertToRaw(copy, "qcow2", flat);
        const found = readFileSync(flat);
        rmSync(flat);
        let written = 0;
        while (found.subarray(written, written + size).equals(Buffer.alloc(size, 171)))
          written += size;
        expect(written).toBeGreaterThan(0);
        expect(found.subarray(written).equals(lower.subarray(written))).toBe(true);
      },
      { changes: 60 },
    );
  });

  it("check -r all: no more errors than there were, and the next one mends them", async () => {
    const damaged = path("damaged.qcow2");
    copyFileSync(path("base.qcow2"), damaged);
    const bytes = readFileSync(damaged);
    const table = Number(bytes.readBigUInt64BE(48));
    const block = Number(bytes.readBigUInt64BE(table));
    // Counts of data clusters: some are too low, some too high.
    for (let index = 100; index < 1400; index += 3)
      bytes.writeUInt16BE(index % 2, block + index * 2);
    for (let index = 1700; index < 1900; index++) bytes.writeUInt16BE(3, block + index * 2);
    writeFileSync(damaged, bytes);
    before = readdirSync(directory);
    expect((await checkImage(damaged)).verdict).toBe("corrupt");
    await atMoments(
      "damaged.qcow2",
      (copy) => ["check", "-q", "-r", "all", copy],
      async (copy) => {
        await tsimgfs(["check", "-q", "-r", "all", copy]);
        await expectClean(copy);
        await expectShows(copy, lower);
      },
      { changes: 3 },
    );
  });
});
