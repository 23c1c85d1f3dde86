// Zeros stay small: written, punched, or discarded through a loop device, at any alignment.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { qemuCheck } from "../support/check-oracle.ts";
import { expectSameBytes } from "../support/device-content.ts";
import { parseMap } from "../support/disk-map.ts";
import { mounted, refusedMount } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, type ImageFormat, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import {
  casesOfTransport,
  describeNeeds,
  itMainly,
  itNeeds,
  itOnce,
  transportHas,
} from "../support/transport.ts";
import {
  expectClean,
  expectDisk,
  fileUsage,
  WRITE_KINDS,
  type WriteKind,
  withWriteImage,
  writeKind,
} from "../support/write-images.ts";
import { withTmpfs } from "../support/write-tmpfs.ts";

const MIB = 2 ** 20;
const FULL_SIZE = byScale(256, 1024) * MIB;

/** How zeros come to a device. */
const WAYS = transportHas("fallocate") ? ["written", "punched"] : ["written"];

interface FullKind {
  readonly name: string;
  readonly options: Readonly<Record<string, string | number>>;
  /** Over a backing file that is full as well. */
  readonly over?: boolean;
  readonly dataFile?: boolean;
}

const FULL_KINDS: readonly FullKind[] = [
  { name: "v3", options: {} },
  { name: "v2", options: { compat: "0.10" } },
  { name: "extended-l2", options: { extended_l2: "on" } },
  { name: "overlay", options: {}, over: true },
  { name: "data-file", options: {}, dataFile: true },
];

const DD_KINDS = casesOfTransport("zeros by dd", FULL_KINDS, 1);

/** Makes an image whose disk is full of data, in a directory; returns its path and that of the data. */
async function makeFull(
  directory: string,
  { name, options, over, dataFile }: FullKind,
  size: number,
): Promise<{ readonly path: string; readonly data: string }> {
  const path = join(directory, `${name}.qcow2`);
  const data = dataFile === true ? join(directory, `${name}.data`) : path;
  const base = join(directory, `${name}.base`);
  const fill = [`write -q -P 85 0 ${size}`];
  if (over === true) {
    await createImage(base, "qcow2", { size });
    await qemuIo(base, "qcow2", fill);
  }
  await createImage(path, "qcow2", {
    size,
    options: { ...options, ...(dataFile === true ? { data_file: data } : {}) },
    ...(over === true ? { backing: { file: base, format: "qcow2" } } : {}),
  });
  await qemuIo(path, "qcow2", fill);
  return { path, data };
}

/** Bytes of a disk that are stored as data, according to qemu-img map. */
async function dataBytes(path: string, format: ImageFormat = "qcow2"): Promise<number> {
  return parseMap(await imageMap(["-f", format, path]))
    .filter(({ data }) => data)
    .reduce((sum, { length }) => sum + length, 0);
}

/** Where the last cluster in use ends, according to qemu-img check. */
async function imageEnd(path: string): Promise<number> {
  const { counts } = await qemuCheck(path);
  return counts?.imageEndOffset ?? 0;
}

/**
 * Expects that a disk is zeros, stored nowhere, in an image of at most 2 MiB. Over a backing file tables say that
 * it is zeros; where qemu-io has put them behind data, the file ends with the last one.
 */
async function expectNothingLeft(path: string, data: string, { over }: FullKind): Promise<void> {
  await expectClean(path);
  const map = parseMap(await imageMap(["-f", "qcow2", path]));
  expect(map.every(({ zero }) => zero)).toBe(true);
  const usage = await fileUsage(path);
  const tablesEnd = over === true ? await imageEnd(path) : 0;
  expect(usage.length, "length of the image").toBeLessThanOrEqual(Math.max(2 * MIB, tablesEnd));
  expect(usage.allocated, "space of the image").toBeLessThanOrEqual(2 * MIB);
  expect((await fileUsage(data)).allocated, "space of the data").toBeLessThanOrEqual(2 * MIB);
}

// On tmpfs: these tests write much, and the disk is not their subject.
describe.skipIf(!IS_ROOT)("zeros over a full image (need root)", () => {
  it.each(DD_KINDS)("by dd leave at most 2 MiB: $name", async (kind) => {
    await withTmpfs(3 * FULL_SIZE, async ({ directory }) => {
      const { path, data } = await makeFull(directory, kind, FULL_SIZE);
      await mounted([path], {}, async (mount) => {
        const dd = ["if=/dev/zero", "bs=1M", "conv=notrunc", "oflag=nocache", "status=none"];
        const count = [`count=${FULL_SIZE / MIB}`];
        await run("dd", [...dd, ...count, `of=${mount.device(path)}`], { timeoutMs: 150_000 });
        await run("cmp", ["-n", String(FULL_SIZE), mount.device(path), "/dev/zero"]);
      });
      await expectNothingLeft(path, data, kind);
    });
  });

  itNeeds("fallocate").each(byScale(FULL_KINDS.slice(0, 2), FULL_KINDS))(
    "by one fallocate leave at most 2 MiB: $name",
    async (kind) => {
      await withTmpfs(3 * FULL_SIZE, async ({ directory }) => {
        const { path, data } = await makeFull(directory, kind, FULL_SIZE);
        await mounted([path], {}, async (mount) => {
          await run("fallocate", ["-p", "-l", String(FULL_SIZE), mount.device(path)]);
          await run("cmp", ["-n", String(FULL_SIZE), mount.device(path), "/dev/zero"]);
        });
        await expectNothingLeft(path, data, kind);
      });
    },
  );

  itMainly("leave a raw image without space on the host", async () => {
    await withTmpfs(2 * FULL_SIZE, async ({ directory }) => {
      const path = join(directory, "flat.raw");
      await createImage(path, "raw", { size: FULL_SIZE });
      await qemuIo(path, "raw", [`write -q -P 85 0 ${FULL_SIZE}`]);
      await mounted([path], {}, async (mount) => {
        const dd = ["if=/dev/zero", "bs=1M", "conv=notrunc", "status=none"];
        await run("dd", [...dd, `count=${FULL_SIZE / MIB}`, `of=${mount.device(path)}`]);
      });
      const usage = await fileUsage(path);
      expect(usage.length).toBe(FULL_SIZE);
      expect(usage.allocated).toBeLessThanOrEqual(MIB);
    });
  });
});

// QED has no way to say that a cluster is free: its place stays, and is a hole.
describe.skipIf(!IS_ROOT)("zeros over a full QED image (need root)", () => {
  it.each(WAYS)("leave it without space on the host (%s)", async (how) => {
    await withTmpfs(3 * FULL_SIZE, async ({ directory }) => {
      const path = join(directory, "full.qed");
      const zeros = join(directory, "zeros");
      await createImage(path, "qed", { size: FULL_SIZE });
      await qemuIo(path, "qed", [`write -q -P 85 0 ${FULL_SIZE}`]);
      const { length } = await fileUsage(path);
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        if (how === "punched") await run("fallocate", ["-p", "-l", String(FULL_SIZE), device]);
        else {
          const dd = ["if=/dev/zero", "bs=1M", "conv=notrunc", "status=none"];
          await run("dd", [...dd, `count=${FULL_SIZE / MIB}`, `of=${device}`]);
        }
        await run("cmp", ["-n", String(FULL_SIZE), device, "/dev/zero"]);
      });
      await run("truncate", ["-s", String(FULL_SIZE), zeros]);
      await expectDisk(path, "qed", zeros);
      await expectClean(path, "qed");
      const usage = await fileUsage(path);
      expect(usage.length).toBe(length);
      expect(usage.allocated).toBeLessThanOrEqual(2 * MIB);
    });
  });
});

describe("a partial cluster", () => {
  it.each(WAYS)("of zeros, %s, becomes a zero cluster if the rest is zero", async (how) => {
    const directory = await makeScratch("zeros");
    try {
      const path = join(directory, "disk.qcow2");
      await createImage(path, "qcow2", { size: MIB });
      await qemuIo(path, "qcow2", ["write -q -P 7 128k 8k", "write -q -z 136k 56k"]);
      expect(await dataBytes(path)).toBe(65536);
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        if (how === "punched") {
          await run("fallocate", ["-p", "-o", String(128 * 1024), "-l", "8192", device]);
        } else {
          const where = ["bs=8k", "seek=16", "count=1", "conv=notrunc"];
          await run("dd", ["if=/dev/zero", `of=${device}`, ...where]);
        }
      });
      await expectClean(path);
      expect(await dataBytes(path)).toBe(0);
    } finally {
      await rm(directory, { recursive: true });
    }
  });
});

/** Differences to a multiple of the cluster size, and to lengths, that no cluster or sector knows. */
const SHIFTS = [0, 1, -1, 511, 512, -512, 4095, 4096, -4096] as const;

const ALIGNED_KINDS: readonly WriteKind[] = byScale(
  (
    [
      "v3",
      "clusters-512",
      "clusters-2m",
      "compressed",
      "snapshot",
      "extended-l2-16k-over-qcow2",
      "data-file-raw",
      "v2-over-qed",
      "raw",
      "qed-16k-over-qcow2",
    ] as const
  ).map(writeKind),
  [...WRITE_KINDS],
);

describeNeeds("fallocate")("punched and zeroed ranges", () => {
  it.each(ALIGNED_KINDS)(
    "read as zeros at any alignment, and nothing else does: $name",
    async (kind) => {
      const random = new Random(`alignments ${kind.name}`);
      await withWriteImage(kind, byScale(6, 24) * MIB, async (image) => {
        const { clusterSize, size, expected, directory } = image;
        const noise = join(directory, "noise");
        const fill = ["bs=1M", `count=${size}`, "iflag=count_bytes", "status=none"];
        await run("dd", ["if=/dev/urandom", `of=${noise}`, ...fill]);
        await mounted([image.path], {}, async (mount) => {
          const device = mount.device(image.path);
          for (const how of ["fpunch", "fzero -k", "fzero"]) {
            const ranges = alignedRanges(random, clusterSize, size);
            const commands = (call: string): string[] =>
              ranges.flatMap(({ offset, length }) => ["-c", `${call} ${offset} ${length}`]);
            await run("xfs_io", [...commands(how), device]);
            await run("xfs_io", [...commands("fpunch"), expected]); // Every file system has this one.
            await expectSameBytes(device, expected, `after ${how}`);
            for (const file of [device, expected]) {
              await run("dd", [`if=${noise}`, `of=${file}`, ...fill, "conv=notrunc"]);
            }
          }
        });
        await image.expectIntact();
      });
    },
  );

  it("end at the end of the device", async () => {
    await withWriteImage(writeKind("v3"), 2 * MIB, async (image) => {
      const { size, expected } = image;
      await mounted([image.path], {}, async (mount) => {
        const device = mount.device(image.path);
        const tooFar = ["-o", String(size - 100_000), "-l", "1000000", device];
        await run("fallocate", ["--punch-hole", ...tooFar]);
        await run("fallocate", ["-p", "-o", String(size - 100_000), "-l", "100000", expected]);
        await expectSameBytes(device, expected, "after a punch past the end");
        await run("fallocate", ["--zero-range", "--keep-size", ...tooFar]);
        const longer = await attempt("fallocate", ["--zero-range", ...tooFar]);
        expect(longer.stderr).toMatch(/No space left/);
        await expectSameBytes(device, expected, "after zeroing past the end");
      });
      await image.expectIntact();
    });
  });
});

/** Ranges all over the disk whose ends lie around cluster boundaries, in ascending order. */
function alignedRanges(
  random: Random,
  clusterSize: number,
  size: number,
): { readonly offset: number; readonly length: number }[] {
  const ranges: { offset: number; length: number }[] = [];
  const step = Math.max(4 * clusterSize, Math.ceil(size / 60 / clusterSize) * clusterSize);
  for (let base = 0; base < size; base += step) {
    const offset = Math.min(Math.max(0, base + clusterSize + random.pick(SHIFTS)), size - 1);
    const clusters = random.below(3) * clusterSize;
    const length = Math.max(1, clusters + random.pick(SHIFTS));
    ranges.push({ offset, length: Math.min(length, size - offset) });
  }
  return ranges;
}

describe.skipIf(!IS_ROOT)("the options for zeros (need root)", () => {
  let directory = "";
  const SIZE = 8 * MIB;

  beforeAll(async () => {
    directory = await makeScratch("zero-options");
  });

  afterAll(async () => {
    await rm(directory, { recursive: true });
  });

  /** What is stored after zeros came to a full and to an empty image. */
  async function zeroed(
    args: readonly string[],
    how: "written" | "punched",
  ): Promise<{ full: number; fullSpace: number; empty: number }> {
    return await withTmpfs(64 * MIB, async (tmpfs) => {
      const { path } = await makeFull(tmpfs.directory, { name: "full", options: {} }, SIZE);
      const empty = join(tmpfs.directory, "empty.qcow2");
      await createImage(empty, "qcow2", { size: SIZE });
      await mounted([path, empty], { args }, async (mount) => {
        for (const image of [path, empty]) {
          const device = mount.device(image);
          if (how === "punched") {
            await run("fallocate", ["-p", "-l", String(SIZE), device]);
          } else {
            await run("dd", ["if=/dev/zero", `of=${device}`, "bs=1M", "count=8", "conv=notrunc"]);
          }
          await run("cmp", ["-n", String(SIZE), device, "/dev/zero"]);
        }
      });
      const zeros = join(directory, "zeros");
      await run("truncate", ["-s", String(SIZE), zeros]);
      for (const image of [path, empty]) {
        await expectDisk(image, "qcow2", zeros);
        await expectClean(image);
      }
      return {
        full: await dataBytes(path),
        fullSpace: (await fileUsage(path)).allocated,
        empty: await dataBytes(empty),
      };
    });
  }

  it("detect written zeros by default", async () => {
    const { full, fullSpace, empty } = await zeroed([], "written");
    expect({ full, empty }).toEqual({ full: 0, empty: 0 });
    expect(fullSpace).toBeLessThan(MIB);
  });

  it("store written zeros with --detect-zeroes off", async () => {
    const { full, fullSpace, empty } = await zeroed(["--detect-zeroes", "off"], "written");
    expect({ full, empty }).toEqual({ full: SIZE, empty: SIZE });
    expect(fullSpace).toBeGreaterThanOrEqual(SIZE);
  });

  it("give space of written zeros back with --detect-zeroes unmap", async () => {
    const { full, fullSpace, empty } = await zeroed(["--detect-zeroes", "unmap"], "written");
    expect({ full, empty }).toEqual({ full: 0, empty: 0 });
    expect(fullSpace).toBeLessThan(MIB);
  });

  itNeeds("fallocate")(
    "make holes of punched ranges by default, and whatever --detect-zeroes says",
    async () => {
      for (const args of [[], ["--detect-zeroes", "off"]]) {
        const { full, fullSpace, empty } = await zeroed(args, "punched");
        expect({ full, empty }).toEqual({ full: 0, empty: 0 });
        expect(fullSpace).toBeLessThan(MIB);
      }
    },
  );

  itNeeds("fallocate")(
    "keep the space of punched ranges with --discard ignore, which read as zeros",
    async () => {
      const { full, fullSpace } = await zeroed(["--discard", "ignore"], "punched");
      expect(full).toBe(0);
      expect(fullSpace).toBeGreaterThanOrEqual(SIZE);
    },
  );

  itOnce.each([["--detect-zeroes=maybe"], ["--discard=yes"]])(
    "are refused as %s",
    async (option) => {
      const path = join(directory, "refused.qcow2");
      await createImage(path, "qcow2", { size: MIB });
      expect(await refusedMount([path], { args: [option] })).toContain(option.split("=")[1]);
    },
  );
});
