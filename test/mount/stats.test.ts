// The statistics file: valid JSON through cat, cp and jq, of a size that is stable while it is open.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { asRecord } from "../support/json.ts";
import { mounted } from "../support/mounted.ts";
import { imageInfo } from "../support/qemu.ts";
import { run, runJson } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";

/** Opens the file once, prints its size by stat and then the number of bytes that reading gives. */
const SIZES = 'exec 3<"$0"; stat -L -c %s /proc/self/fd/3; wc -c <&3';

describe("NAME.stats.json", () => {
  let directory = "";
  let base: SampleImage;
  let sample: SampleImage;

  beforeAll(async () => {
    directory = await makeScratch("stats");
    base = await makeSample(directory, "base.qcow2");
    sample = await makeSample(directory, "vm.qcow2", {
      backing: { file: base.path, format: "qcow2" },
    });
  });

  afterAll(async () => {
    await rm(directory, { recursive: true, force: true });
  });

  it("is the same valid JSON through cat, cp and jq", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const stats = mount.stats(sample.path);
      const copy = join(directory, "copy.json");
      await run("cp", [stats, copy]);
      const byCopy = asRecord(await runJson("cat", [copy]));
      const byCat = asRecord(await runJson("cat", [stats]));
      const byJq = asRecord(await runJson("jq", [".", stats]));
      expect(Object.keys(byCopy)).toEqual(Object.keys(byCat));
      expect(Object.keys(byJq)).toEqual(Object.keys(byCat));
    });
  });

  it("says of the image what qemu-img info says", async () => {
    await mounted([sample.path], { args: ["-r"] }, async (mount) => {
      const info = asRecord(await imageInfo([sample.path]));
      const stats = asRecord(await runJson("cat", [mount.stats(sample.path)]));
      for (const field of ["format", "filename", "virtual-size", "cluster-size"]) {
        expect(stats[field], field).toEqual(info[field]);
      }
      expect(JSON.stringify(stats), "the backing chain").toContain(base.path);
    });
  });

  it("has a size by stat that equals the bytes read, while reads change the counters", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const stats = mount.stats(sample.path);
      for (let round = 0; round < 20; round++) {
        const copy = join(directory, "device");
        await run("dd", [`if=${mount.device(sample.path)}`, `of=${copy}`, "bs=9k", "iflag=direct"]);
        const { stdout } = await run("sh", ["-c", SIZES, stats]);
        const [byStat, byRead] = stdout.trim().split(/\s+/).map(Number);
        expect(byStat).toBeGreaterThan(0);
        expect(byRead).toBe(byStat);
      }
    });
  });

  it("is whole when read in pieces of one byte, of 7 bytes and at an offset", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const stats = mount.stats(sample.path);
      for (const size of [1, 7]) {
        expect(await runJson("dd", [`if=${stats}`, `bs=${size}`, "status=none"])).toBeTypeOf(
          "object",
        );
      }
      const { stdout } = await run("tail", ["-c", "2", stats]);
      expect(stdout.trimEnd()).toMatch(/\}$/);
    });
  });

  it("counts the reads of the device", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const stats = mount.stats(sample.path);
      const before = asRecord(await runJson("cat", [stats]));
      const device = mount.device(sample.path);
      await run("dd", [`if=${device}`, "of=/dev/null", "bs=4096", "count=10", "iflag=direct"]);
      const after = asRecord(await runJson("cat", [stats]));
      expect(after["io"]).toBeTypeOf("object");
      expect(after["io"]).not.toEqual(before["io"]);
    });
  });
});
