// Huge sparse disks, up to 64 TiB: mounted at once, in bounded memory, and right at every place that has data.

import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { residentBytes } from "../support/daemon-processes.ts";
import { expectSameBytes } from "../support/device-content.ts";
import { zeroRuns } from "../support/disk-map.ts";
import { mounted } from "../support/mounted.ts";
import { convertWindow, createImage, type ImageFormat, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { withScratch } from "../support/scratch.ts";

const GIB = 2 ** 30;
const TIB = 2 ** 40;

interface Disk {
  readonly name: string;
  readonly format: ImageFormat;
  readonly size: number;
  readonly options: Readonly<Record<string, string | number>>;
}

const DISKS: readonly Disk[] = [
  { name: "qcow2-64t", format: "qcow2", size: 64 * TIB, options: { cluster_size: 65536 } },
  { name: "qcow2-64t-2m", format: "qcow2", size: 64 * TIB, options: { cluster_size: 2_097_152 } },
  { name: "qcow2-100g-512", format: "qcow2", size: 100 * GIB, options: { cluster_size: 512 } },
  { name: "qcow2-8t-extended", format: "qcow2", size: 8 * TIB, options: { extended_l2: "on" } },
  // Not with larger tables: the map of QEMU 7.2 ends in an assertion where one L2 table covers 8 GiB.
  { name: "qed-64t", format: "qed", size: 64 * TIB, options: { table_size: 4 } },
];

const WINDOW_SIZE = 262_144;

/** Windows of data: the first and the last bytes of the disk and a few places between. */
function windowOffsets(random: Random, size: number): number[] {
  const places = Array.from({ length: 5 }, () => random.below(size / 512 - 512) * 512);
  return [0, size - WINDOW_SIZE, ...places];
}

describe("huge sparse disks against qemu-img", () => {
  it.each(DISKS)("reads $name where it has data and where it has none", async (disk) => {
    await withScratch("huge", async (directory) => {
      const { format, size, options } = disk;
      const random = new Random(disk.name);
      const path = join(directory, `${disk.name}.${format}`);
      await createImage(path, format, { size, options });
      const offsets = windowOffsets(random, size);
      const writes = offsets.map(
        (offset, index) => `write -q -P ${index + 1} ${offset} ${WINDOW_SIZE - 1024 * index}`,
      );
      await qemuIo(path, format, writes);
      await mounted([path], { args: ["-r"] }, async (mount) => {
        const device = mount.device(path);
        const { stdout } = await run("stat", ["--format=%s", device]);
        expect(Number(stdout)).toBe(size);
        for (const offset of offsets) {
          const window = { offset, size: WINDOW_SIZE };
          const wanted = join(directory, "wanted");
          const actual = join(directory, "actual");
          await convertWindow(path, format, window, wanted);
          const where = [`skip=${offset}`, `count=${WINDOW_SIZE}`, "iflag=skip_bytes,count_bytes"];
          await run("dd", [`if=${device}`, `of=${actual}`, "bs=64k", "status=none", ...where]);
          await expectSameBytes(actual, wanted, `${disk.name} at ${offset}`);
        }
        const actualMap = await imageMap(["-f", "raw", device]);
        expect(zeroRuns(actualMap)).toEqual(zeroRuns(await imageMap(["-f", format, path])));
        expect(residentBytes(mount.daemonPid())).toBeLessThan(300 * 2 ** 20);
      });
    });
  });
});
