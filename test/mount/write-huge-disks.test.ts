// Writing far out: large disks, large tables, and host offsets past 4 GiB.

import { join } from "node:path";
import { describe, it } from "vitest";
import { expectSameBytes } from "../support/device-content.ts";
import { mounted } from "../support/mounted.ts";
import { convertWindow, createImage, type ImageFormat, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";
import { casesOfTransport } from "../support/transport.ts";
import { expectClean } from "../support/write-images.ts";

const GIB = 2 ** 30;
const TIB = 2 ** 40;

interface HugeDisk {
  readonly name: string;
  readonly format: ImageFormat;
  readonly size: number;
  readonly options: Readonly<Record<string, string | number>>;
}

const DISKS: readonly HugeDisk[] = [
  { name: "64t", format: "qcow2", size: 64 * TIB, options: {} },
  { name: "clusters-512", format: "qcow2", size: 100 * GIB, options: { cluster_size: 512 } },
  { name: "clusters-2m", format: "qcow2", size: 512 * TIB, options: { cluster_size: 2 ** 21 } },
  { name: "extended-l2", format: "qcow2", size: 30 * TIB, options: { extended_l2: "on" } },
  // All clusters have their place: most of them past 4 GiB in the file.
  {
    name: "preallocated",
    format: "qcow2",
    size: 12 * GIB,
    options: { preallocation: "metadata", cluster_size: 2 ** 20 },
  },
  { name: "raw", format: "raw", size: 3 * TIB, options: {} },
  { name: "qed-64t", format: "qed", size: 64 * TIB, options: { table_size: 4 } },
  { name: "qed-2m", format: "qed", size: 3 * TIB, options: { cluster_size: 2 ** 21 } },
];

const CASES = casesOfTransport("huge disks", DISKS, 2);

const WINDOW_SIZE = 1024 * 1024;

/** Windows to write to, apart from each other: the first and the last bytes of the disk and some places between. */
function windowOffsets(random: Random, size: number): number[] {
  const part = Math.floor(size / 512 / 6);
  const places = Array.from({ length: 6 }, (_, index) => {
    return (part * index + 4096 + random.below(part - 8192)) * 512;
  });
  return [0, size - WINDOW_SIZE, ...places];
}

describe("huge disks", () => {
  it.each(CASES)("take writes everywhere: $name", async ({ name, format, size, options }) => {
    await withScratch("write-huge", async (directory) => {
      const random = new Random(`write ${name}`);
      const path = join(directory, `${name}.${format}`);
      const noise = join(directory, "noise");
      await createImage(path, format, { size, options });
      const offsets = windowOffsets(random, size);
      // Half of the places have data already.
      const writes = offsets
        .filter((_, index) => index % 2 === 0)
        .map((offset) => `write -q -P 85 ${offset} ${WINDOW_SIZE / 2}`);
      await qemuIo(path, format, writes);
      await run("dd", ["if=/dev/urandom", `of=${noise}`, "bs=1M", "count=1", "status=none"]);
      const shift = 1000;
      const count = 500_000;
      const wanted = new Map<number, string>();
      for (const offset of offsets) {
        const file = join(directory, `wanted-${offset}`);
        await convertWindow(path, format, { offset, size: WINDOW_SIZE }, file);
        const where = ["oflag=seek_bytes", "iflag=count_bytes", `count=${count}`, `seek=${shift}`];
        await run("dd", [`if=${noise}`, `of=${file}`, "bs=70000", ...where, "conv=notrunc"]);
        wanted.set(offset, file);
      }
      await mounted([path], {}, async (mount) => {
        for (const offset of offsets) {
          const seek = [`seek=${offset + shift}`, "oflag=seek_bytes", "conv=notrunc"];
          const from = [`if=${noise}`, "iflag=count_bytes", `count=${count}`, "bs=70000"];
          await run("dd", [...from, `of=${mount.device(path)}`, ...seek]);
        }
      });
      await expectClean(path, format);
      for (const [offset, file] of wanted) {
        const actual = join(directory, "actual");
        await convertWindow(path, format, { offset, size: WINDOW_SIZE }, actual);
        await expectSameBytes(actual, file, `${name} at ${offset}`);
      }
    });
  });
});
