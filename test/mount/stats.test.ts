// The statistics file: valid JSON through cat, cp and jq, of a size that is stable while it is open.

import { readFile, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { STATS_FIELDS, statsFieldsText } from "../../src/tree/stats-fields.ts";
import { asRecord } from "../support/json.ts";
import { mounted } from "../support/mounted.ts";
import { createImage, imageInfo } from "../support/qemu.ts";
import { REPOSITORY } from "../support/repository.ts";
import { run, runJson } from "../support/run.ts";
import { makeSample, type SampleImage } from "../support/sample-image.ts";
import { makeScratch } from "../support/scratch.ts";
import { tsimgfs } from "../support/tsimgfs.ts";

/** Collects the paths of all values, as they are described: `layers[].bytes`, and operations by one name. */
function collectPaths(value: unknown, path: string, found: Set<string>): void {
  if (Array.isArray(value)) {
    for (const element of value) collectPaths(element, `${path}[]`, found);
  } else if (typeof value === "object" && value !== null) {
    for (const [name, field] of Object.entries(value)) {
      collectPaths(field, path === "" ? name : `${path}.${name}`, found);
    }
  } else found.add(describedPath(path));
}

function describedPath(path: string): string {
  if (/^io\.threads\[\]\.(?!thread$|role$)/.test(path)) return "io.threads[].*";
  if (path.startsWith("data-file.alloc-info.")) return "data-file.alloc-info.*";
  return path.replace(/^io\.operations\.[a-z]+\./, "io.operations.OPERATION.");
}

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

  it("is whole for who asks for its size before it was ever opened, and in an archive", async () => {
    await mounted([sample.path], {}, async (mount) => {
      const files = [mount.stats(sample.path), join(mount.mountPoint, "metrics")];
      for (const file of files) {
        // As many bytes as the size says, which is of before the first opening.
        const { stdout } = await run("sh", ["-c", 'head -c "$(stat -c %s "$0")" "$0"', file]);
        expect(stdout).toMatch(/(?:\n\}|# EOF)\n$/);
        const { stdout: count } = await run("sh", ["-c", 'wc -c < "$0"; cat "$0" | wc -c', file]);
        const [byWc, byCat] = count.trim().split(/\s+/).map(Number);
        // Each opening has a text of its own, whose numbers may have got a digit more.
        expect(Math.abs(Number(byWc) - Number(byCat))).toBeLessThan(100);
      }
      const archive = join(directory, "stats.tar");
      const names = files.map((file) => basename(file));
      // With a failure if a file changes while it is read.
      await run("tar", ["-cf", archive, "-C", mount.mountPoint, ...names]);
      for (const name of names) {
        const { stdout } = await run("tar", ["-xOf", archive, name]);
        expect(stdout).toMatch(/(?:\n\}|# EOF)\n$/);
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

  it("has the fields that the command's help and native-notes/statistics.md describe, and no others", async () => {
    const data = join(directory, "fields.data");
    const path = join(directory, "fields.qcow2");
    await createImage(path, "qcow2", { size: 1024 * 1024, options: { data_file: data } });
    await run("qemu-img", ["snapshot", "-c", "one", sample.path]);
    const found = new Set<string>();
    await mounted([sample.path, path], {}, async (mount) => {
      await run("dd", [`if=${mount.device(sample.path)}`, "of=/dev/null", "bs=1M", "count=1"]);
      for (const image of [sample.path, path]) {
        collectPaths(await runJson("cat", [mount.stats(image)]), "", found);
      }
    });
    const { stdout: help } = await tsimgfs(["help", "stats"]);
    const described = [...help.matchAll(/^ {2}(\S+) .*$/gm)]
      .map(([, name = ""]) => name)
      .filter((name) =>
        STATS_FIELDS.some(({ fields }) => fields.some(([field]) => field === name)),
      );
    expect(described).toEqual(STATS_FIELDS.flatMap(({ fields }) => fields.map(([name]) => name)));
    // What stands in place of numbers that cannot be counted is not there.
    const expected = described.filter((name) => !name.endsWith(".error"));
    expect([...found].sort()).toEqual(expected.sort());
    const document = await readFile(join(REPOSITORY, "native-notes/statistics.md"), "utf8");
    expect(document).toContain(statsFieldsText());
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
