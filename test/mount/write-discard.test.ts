// Discards of whole disks: metadata work only, beside which others go on; and what file systems on a device give back.

import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { withLoop } from "../support/loop.ts";
import { mounted } from "../support/mounted.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { withScratch } from "../support/scratch.ts";
import { expectClean, fileUsage } from "../support/write-images.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

/** Discards this short need not let anybody in between. */
const SHORT_MS = 1000;

interface HugeDisk {
  readonly name: string;
  readonly size: number;
  readonly options: Readonly<Record<string, string | number>>;
}

const HUGE_DISKS: readonly HugeDisk[] = [
  { name: "1 TiB, data here and there", size: 1024 * GIB, options: {} },
  {
    name: "all clusters allocated",
    size: byScale(16, 256) * GIB,
    options: { preallocation: "metadata" },
  },
];

/** Where such a disk has data: a megabyte at each place, of the byte 85. */
function dataOffsets(random: Random, size: number): number[] {
  return Array.from({ length: 40 }, () => random.below(size / MIB) * MIB);
}

/**
 * Reads small blocks, past the cache, until `work` has ended: each is zeros or the data that was
 * there, and none waits for the end of the work.
 */
async function readBeside(
  device: string,
  offsets: readonly number[],
  work: Promise<unknown>,
): Promise<void> {
  const reader = await open(device, constants.O_RDONLY | constants.O_DIRECT);
  const started = performance.now();
  let isDone = false;
  let longest = 0;
  const ended = work.finally(() => {
    isDone = true;
  });
  try {
    for (let count = 0; !isDone; count++) {
      const before = performance.now();
      const bytes = Buffer.alloc(4096, 1);
      const { bytesRead } = await reader.read(bytes, 0, 4096, offsets[count % offsets.length]);
      longest = Math.max(longest, performance.now() - before);
      expect(bytesRead).toBe(4096);
      expect([0, 85]).toContain(bytes[0]);
      expect(bytes.every((byte) => byte === bytes[0])).toBe(true);
    }
  } finally {
    await ended;
    await reader.close();
  }
  const duration = performance.now() - started;
  const waited = duration > SHORT_MS && longest > duration / 2;
  expect(waited, `a read took ${longest} of ${duration} ms`).toBe(false);
}

async function makeHuge(directory: string, { size, options }: HugeDisk, offsets: number[]) {
  const path = join(directory, "huge.qcow2");
  await createImage(path, "qcow2", { size, options });
  await qemuIo(
    path,
    "qcow2",
    offsets.map((offset) => `write -q -P 85 ${offset} 1M`),
  );
  return path;
}

describe.each(HUGE_DISKS)("a discard of a whole disk, $name,", (disk) => {
  it("by one fallocate(2) lets a reader go on, and leaves an empty image", async () => {
    await withScratch("discard", async (directory) => {
      const random = new Random(`discard ${disk.name}`);
      const offsets = dataOffsets(random, disk.size);
      const path = await makeHuge(directory, disk, offsets);
      await mounted([path], {}, async (mount) => {
        const device = mount.device(path);
        const punch = run("fallocate", ["-p", "-l", String(disk.size), device], {
          timeoutMs: 140_000,
        });
        await readBeside(device, offsets, punch);
        await run("cmp", ["-n", String(MIB), "-i", `${offsets[0]}:0`, device, "/dev/zero"]);
      });
      await expectClean(path);
      expect((await fileUsage(path)).allocated).toBeLessThan(4 * MIB);
    });
  });

  it.skipIf(!IS_ROOT)(
    "by blkdiscard on a loop device lets a reader go on (needs root)",
    async () => {
      await withScratch("discard", async (directory) => {
        const random = new Random(`blkdiscard ${disk.name}`);
        const offsets = dataOffsets(random, disk.size);
        const path = await makeHuge(directory, disk, offsets);
        await mounted([path], {}, async (mount) => {
          const device = mount.device(path);
          await withLoop(device, [], async (loop) => {
            const discard = run("blkdiscard", [loop], { timeoutMs: 140_000 });
            await readBeside(device, offsets, discard);
            await run("blkdiscard", ["--zeroout", "--offset", String(GIB), "-l", "1G", loop]);
            await run("cmp", ["-n", String(MIB), "-i", `${offsets[0]}:0`, loop, "/dev/zero"]);
          });
        });
        await expectClean(path);
        expect((await fileUsage(path)).allocated).toBeLessThan(4 * MIB);
      });
    },
  );
});
