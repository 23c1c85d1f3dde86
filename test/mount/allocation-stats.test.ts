// Allocation statistics of mounted images: the same as offline, whole while others write, and through the command.

import { spawn } from "node:child_process";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { asArray, asRecord, numberIn } from "../support/json.ts";
import { mounted } from "../support/mounted.ts";
import { buildQcow2 } from "../support/qcow2-builder.ts";
import { createImage, qemuIo } from "../support/qemu.ts";
import { run, runJson } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { engineStats } from "../support/stats-engine.ts";
import { casesOfTransport, itNeeds, transportHas } from "../support/transport.ts";
import { expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const MiB = 1024 * 1024;

type Fields = Readonly<Record<string, unknown>>;

async function statsOf(path: string): Promise<Fields> {
  return asRecord(await runJson("cat", [path]));
}

function sumOf(fields: Fields, without: readonly string[] = []): number {
  return Object.keys(fields)
    .filter((name) => !without.includes(name))
    .reduce((sum, name) => sum + numberIn(fields, name), 0);
}

function expectWhole(stats: Fields): void {
  const info = asRecord(stats["alloc-info"]);
  expect(sumOf(info, ["file-size", "used-overrun"])).toBe(info["file-size"]);
  expect(sumOf(asRecord(stats["guest"]))).toBe(stats["virtual-size"]);
  const layers = asArray(stats["layers"]).map(asRecord);
  const served = layers.reduce((sum, layer) => sum + numberIn(layer, "bytes"), 0);
  expect(served + numberIn(stats, "no-layer")).toBe(stats["virtual-size"]);
}

/** Random writes of all sizes, by two jobs, for a few seconds however fast the machine is. */
function fioArgs(device: string): string[] {
  const job = ["--rw=randwrite", "--bsrange=4k-64k", "--ioengine=psync", "--size=64m"];
  const jobs = ["--numjobs=2", "--offset_increment=64m", "--rate=24m"];
  return ["--name=stats", `--filename=${device}`, ...job, ...jobs];
}

const FORMATS = casesOfTransport("allocation", ["qcow2", "qed"] as const, 1);

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("allocation-stats");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("NAME.stats.json", () => {
  it("says of what only is read what the command says offline", async () => {
    const [base, top] = [join(directory, "base.qed"), join(directory, "top.qcow2")];
    await createImage(base, "qed", { size: 32 * MiB });
    await qemuIo(base, "qed", ["write -P 1 3M 2M"]);
    await createImage(top, "qcow2", { size: 64 * MiB, backing: { file: base, format: "qed" } });
    await qemuIo(top, "qcow2", ["write -P 2 4M 3M", "write -z 40M 1M"]);
    const offline = engineStats(top);
    await mounted([top], { args: ["-r"] }, async (mount) => {
      const stats = await statsOf(mount.stats(top));
      expect(stats).toMatchObject({ ...offline, reserved: 0 });
      expectWhole(stats);
    });
  });

  it.each(FORMATS)("adds up while others write to a %s image", async (format) => {
    const path = join(directory, `busy.${format}`);
    await createImage(path, format, { size: 256 * MiB });
    await mounted([path], {}, async (mount) => {
      const device = mount.device(path);
      const script = [0, 1, 2]
        .map((job) => {
          const write = `dd if=/dev/urandom of="$0" bs=200k count=80 seek=${job * 400} conv=notrunc`;
          const punch = transportHas("fallocate")
            ? `fallocate -p -o $((${job} * 80000 * 1024)) -l 4M "$0"`
            : "true";
          return `(${write} && ${punch} && ${write}) &`;
        })
        .join("\n");
      const writers = spawn("sh", ["-c", `${script}\nwait`, device], { stdio: "ignore" });
      const ended = new Promise<void>((resolve) => writers.on("exit", () => resolve()));
      let looks = 0;
      do {
        const stats = await statsOf(mount.stats(path));
        expectWhole(stats);
        looks++;
      } while (writers.exitCode === null);
      await ended;
      expect(writers.exitCode).toBe(0);
      expect(looks).toBeGreaterThan(1);
      const stats = await statsOf(mount.stats(path));
      const info = asRecord(stats["alloc-info"]);
      // Nobody writes any more: what is reserved is not used by anything else.
      const reserved = numberIn(stats, "reserved");
      expect(reserved).toBeGreaterThan(0);
      const used = numberIn(info, "used-data") + numberIn(info, "used-zero");
      const guest = asRecord(stats["guest"]);
      const needed = numberIn(guest, "data") + (format === "qcow2" ? reserved : 0);
      expect(used).toBeGreaterThanOrEqual(needed);
      expect(info["used-overrun"]).toBe(0);
    });
    // What the mount has left is sound, and can be counted.
    expect(sumOf(asRecord(engineStats(path)["guest"]))).toBe(256 * MiB);
    await run("qemu-img", ["check", "-q", "-f", format, path]);
  });

  // Beside one thread that serves, nothing changes while it counts.
  itNeeds("threads")("adds up in each reading while fio writes", async () => {
    const path = join(directory, "fio.qcow2");
    const options = { cluster_size: 4096 };
    await createImage(path, "qcow2", { size: 128 * MiB, options });
    await mounted([path], {}, async (mount) => {
      const fio = spawn("fio", fioArgs(mount.device(path)), { stdio: "ignore", cwd: directory });
      const ended = new Promise<number | null>((resolve) => fio.on("exit", resolve));
      const lengths = new Set<unknown>();
      do {
        const stats = await statsOf(mount.stats(path));
        expectWhole(stats);
        lengths.add(asRecord(stats["alloc-info"])["file-size"]);
      } while (fio.exitCode === null);
      expect(await ended).toBe(0);
      // It was looked at while the file grew.
      expect(lengths.size).toBeGreaterThan(2);
      const { requests } = asRecord(
        asRecord(asRecord(asRecord(await statsOf(mount.stats(path)))["io"])["operations"])["write"],
      );
      expect(requests).toBeGreaterThan(100);
    });
  });

  it("has the reason in place of what cannot be counted, and the device can be read", async () => {
    const path = join(directory, "damaged.qcow2");
    buildQcow2({ virtualSize: MiB }).setRefcountTable(0, 0x2_0200n).write(path);
    await mounted([path], { args: ["-r"] }, async (mount) => {
      const stats = await statsOf(mount.stats(path));
      expect(asRecord(stats["alloc-info"])).toEqual({
        error: `${path}: refcount block 0 offset 0x20200 is not a multiple of the cluster size 0x10000`,
      });
      expect(sumOf(asRecord(stats["guest"]))).toBe(MiB);
      await run("cmp", ["-n", String(MiB), mount.device(path), "/dev/zero"]);
    });
  });
});

/** Two writes of 1 MiB, and titles and numbers that end below each other. */
const OPERATIONS =
  /^ {2}operation {2}requests +bytes {2}errors +mean +p50 +p99 +max\n {2}read .*\n {2}write +\d+ +2 MiB +0(?: +\d\S*s){4}$/m;

describe("tsimgfs stats of a mount", () => {
  it("shows what its statistics files say: of all devices, or of one", async () => {
    const paths = ["one.qcow2", "two.qcow2"].map((name) => join(directory, name));
    for (const path of paths) await createImage(path, "qcow2", { size: 8 * MiB });
    await mounted(paths, {}, async (mount) => {
      const [one = "", two = ""] = paths;
      await run("dd", [
        "if=/dev/urandom",
        `of=${mount.device(one)}`,
        "bs=1M",
        "count=2",
        "conv=notrunc",
      ]);
      const json = async (path: string): Promise<unknown> =>
        JSON.parse((await tsimgfs(["stats", "--output", "json", path])).stdout);
      const all = asArray(await json(mount.mountPoint)).map(asRecord);
      expect(all.map(({ filename }) => filename)).toEqual(paths);
      const guest = { data: 2 * MiB, unallocated: 6 * MiB };
      for (const path of [mount.device(one), mount.stats(one)]) {
        expect(asRecord(await json(path))).toMatchObject({ filename: one, guest });
      }
      const { stdout } = await tsimgfs(["stats", mount.mountPoint]);
      expect(stdout.match(/^image: .*$/gm)).toEqual(paths.map((path) => `image: ${path}`));
      expect(stdout).toMatch(OPERATIONS);
      expect(stdout).toMatch(/^ {2}opens +1$/m);
      expect(stdout).toMatch(/^reserved\n {2}for new clusters +\S+ [KM]iB +\d+$/m);
      expect(await statsOf(mount.stats(two))).toMatchObject({ guest: { data: 0 } });
      await expectRefusal(
        ["stats", join(mount.mountPoint, "three.raw")],
        [/three\.raw: no such device/],
      );
      await expectRefusal(["stats", "-f", "raw", mount.device(one)], [/is for images/]);
    });
  });

  itNeeds("file-mountpoint")("says that a mount on a file has none", async () => {
    const path = join(directory, "file.qcow2");
    await createImage(path, "qcow2", { size: MiB });
    await mounted([path], { mountPointKind: "file" }, async (mount) => {
      await expectRefusal(["stats", mount.mountPoint], [/is a mount on a file, which has no stat/]);
    });
  });
});
