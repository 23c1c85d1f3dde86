// How much room convert takes: no more than measure says, so that a device of that size is enough.

import { rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { withLoop } from "../support/loop.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, tsimgfs } from "../support/tsimgfs.ts";

const MIB = 2 ** 20;

describe("the room that a conversion takes", () => {
  let directory = "";
  let full = "";
  let sparse = "";

  beforeAll(async () => {
    directory = await makeScratch("convert-room");
    full = join(directory, "full.raw");
    await writeFile(full, new Random("convert room").bytes(70 * MIB));
    sparse = join(directory, "sparse.raw");
    await run("truncate", ["-s", "50M", sparse]);
    await qemuIo(
      sparse,
      "raw",
      [7, 19, 33].map((at) => `write -P ${at} ${at}M 1500k`),
    );
  });
  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  async function measured(options: string, source: string): Promise<number> {
    const args = ["measure", "--output=json", "-O", "qcow2", "-o", options, source];
    const { stdout } = await run("qemu-img", args);
    const { required }: { required: number } = JSON.parse(stdout);
    return required;
  }

  describe.skipIf(!IS_ROOT)("on a block device (needs root)", () => {
    it.each([
      { clusterSize: "64k", threads: "8" },
      { clusterSize: "64k", threads: "1" },
      { clusterSize: "4k", threads: "2" },
      { clusterSize: "2M", threads: "2" },
    ])(
      "is what qemu-img measures, in clusters of $clusterSize by $threads threads",
      async ({ clusterSize, threads }) => {
        const options = `cluster_size=${clusterSize}`;
        const file = join(directory, `device-${clusterSize}-${threads}`);
        await writeFile(file, "");
        await truncate(file, await measured(options, full));
        await withLoop(file, [], async (device) => {
          await tsimgfs(["convert", "-m", threads, "-O", "qcow2", "-o", options, full, device]);
          await run("qemu-img", ["compare", full, device]);
          await run("qemu-img", ["check", "-q", device]);
        });
      },
    );

    it("is told when the device is too small for it", async () => {
      const file = join(directory, "small-device");
      await writeFile(file, "");
      await truncate(file, (await measured("cluster_size=64k", full)) - 65536);
      await withLoop(file, [], async (device) => {
        const { status, stderr } = await attemptTsimgfs(["convert", "-O", "qcow2", full, device]);
        expect(status).toBe(1);
        expect(stderr).toMatch(
          /^tsimgfs: (\S+): no free clusters are left on this device of \d+ bytes; \1 was there before, and is not complete now\n$/,
        );
      });
    });
  });

  it.each(["512", "1k", "4k", "64k"])(
    "ends with the image, in clusters of %s",
    async (clusterSize) => {
      const options = `cluster_size=${clusterSize}`;
      for (const source of [full, sparse]) {
        const target = join(directory, `${clusterSize}.qcow2`);
        await tsimgfs(["convert", "-O", "qcow2", "-o", options, source, target]);
        const { stdout } = await run("qemu-img", ["check", "--output=json", target]);
        const { "image-end-offset": end }: { "image-end-offset": number } = JSON.parse(stdout);
        const { size } = await stat(target);
        expect(size).toBe(end);
        // A refcount table that had to grow lies behind what the old one counts.
        expect(size).toBeLessThanOrEqual(2 * (await measured(options, source)));
        await rm(target);
      }
    },
  );
});
