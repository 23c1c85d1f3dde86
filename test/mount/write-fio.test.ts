// fio with checksums in every block, at queue depth 16 and with several jobs, through the mount and through loop devices.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { residentBytes } from "../support/daemon-processes.ts";
import { withLoop } from "../support/loop.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, type ImageFormat, qemuIo } from "../support/qemu.ts";
import { SEED } from "../support/random.ts";
import { attempt, run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";
import { expectClean } from "../support/write-images.ts";

const MIB = 2 ** 20;
/** Bytes that each of the two jobs writes, at random places of its half. */
const JOB_SIZE = byScale(8, 128) * MIB;
const DISK_SIZE = 2 * JOB_SIZE;

interface Load {
  readonly how: string;
  readonly args: readonly string[];
}

const LOADS: readonly Load[] = [
  {
    how: "io_uring, direct",
    args: ["--ioengine=io_uring", "--iodepth=16", "--direct=1", "--bs=4k"],
  },
  {
    how: "libaio, direct, blocks of 4k to 256k",
    args: ["--ioengine=libaio", "--iodepth=16", "--direct=1", "--bsrange=4k-256k"],
  },
  { how: "buffered", args: ["--ioengine=psync", "--direct=0", "--bs=12k"] },
  {
    how: "io_uring, buffered, fsync now and then",
    args: ["--ioengine=io_uring", "--iodepth=16", "--direct=0", "--bs=20k", "--fsync=50"],
  },
];

function fioArgs(device: string, { args }: Load): string[] {
  return [
    ...["--name=verify", `--filename=${device}`, "--rw=randwrite", ...args],
    ...[`--size=${JOB_SIZE}`, "--numjobs=2", `--offset_increment=${JOB_SIZE}`],
    ...["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1"],
    ...[`--randseed=${SEED}`, "--group_reporting", "--minimal"],
    ...["--verify_backlog=256", "--verify_backlog_batch=64"],
  ];
}

/** True if fio has an I/O engine and the kernel lets it be used. */
async function isUsable(engine: string, file: string): Promise<boolean> {
  const probe = ["--name=probe", `--ioengine=${engine}`, `--filename=${file}`, "--size=4k"];
  return (await attempt("fio", [...probe, "--rw=write", "--minimal"])).status === 0;
}

/** How a loop device is set up. */
const LOOPS = casesOfTransport(
  "fio on loop devices",
  [
    { how: "buffered", losetup: [] },
    { how: "direct", losetup: ["--direct-io=on"] },
  ],
  1,
);

const IMAGES: readonly {
  readonly name: string;
  readonly format: ImageFormat;
  readonly over?: boolean;
  readonly options?: Readonly<Record<string, string | number>>;
}[] = [
  { name: "empty.qcow2", format: "qcow2" },
  { name: "small.qcow2", format: "qcow2", options: { cluster_size: 4096 } },
  { name: "overlay.qcow2", format: "qcow2", over: true },
  { name: "subclusters.qcow2", format: "qcow2", over: true, options: { extended_l2: "on" } },
  { name: "flat.raw", format: "raw" },
];

const CASES = casesOfTransport("fio", IMAGES, 1);

describe("fio finds all its checksums", () => {
  let directory = "";
  let loads: readonly Load[] = [];

  beforeAll(async () => {
    directory = await makeScratch("fio");
    const probe = join(directory, "probe");
    const usable = new Map<string, boolean>();
    for (const engine of ["io_uring", "libaio", "psync"]) {
      usable.set(engine, await isUsable(engine, probe));
    }
    const all = LOADS.filter(({ args }) => usable.get(args[0]?.split("=")[1] ?? "") === true);
    loads = casesOfTransport("loads", all, 2);
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  /** A new image, whose backing file (if it has one) is full. */
  async function makeImage({ name, format, over, options }: (typeof IMAGES)[number]) {
    const path = join(directory, name);
    const base = join(directory, "base.qcow2");
    if (over === true) {
      await createImage(base, "qcow2", { size: DISK_SIZE });
      await qemuIo(base, "qcow2", [`write -q -P 85 0 ${DISK_SIZE}`]);
    }
    await createImage(path, format, {
      size: DISK_SIZE,
      ...(options === undefined ? {} : { options }),
      ...(over === true ? { backing: { file: base, format: "qcow2" } } : {}),
    });
    return path;
  }

  async function verifyBy(device: string, load: Load): Promise<void> {
    await run("fio", fioArgs(device, load), { cwd: directory, timeoutMs: 200_000 });
  }

  it.each(CASES)("in $name through the mount", async (image) => {
    const path = await makeImage(image);
    await mounted([path], {}, async (mount) => {
      for (const load of loads) {
        await verifyBy(mount.device(path), load);
      }
      expect(residentBytes(mount.daemonPid()), "memory of the daemon").toBeLessThan(150 * MIB);
    });
    await expectClean(path, image.format);
  });

  it.skipIf(!IS_ROOT).each(LOOPS)(
    "through a loop device, $how (needs root)",
    async ({ how, losetup }) => {
      const path = await makeImage({ name: `loop-${how}.qcow2`, format: "qcow2" });
      await mounted([path], {}, async (mount) => {
        await withLoop(mount.device(path), losetup, async (loop) => {
          for (const load of loads) {
            await verifyBy(loop, load);
          }
        });
      });
      await expectClean(path);
    },
  );
});
