// Allocation statistics of images that qemu-img and qemu-io made, against a computation of the test's own, qemu-img
// check, qemu-img map and stat.

import { appendFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectedAllocation } from "../support/allocation-oracle.ts";
import { asArray, asRecord, booleanIn, numberIn } from "../support/json.ts";
import { withLoop } from "../support/loop.ts";
import { buildQcow2 } from "../support/qcow2-builder.ts";
import { buildQed } from "../support/qed-builder.ts";
import { createImage, imageMap, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run, runJson } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { engineStats } from "../support/stats-engine.ts";
import { attemptTsimgfs, expectRefusal, tsimgfs } from "../support/tsimgfs.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 8 * MiB;

let directory: string;

beforeAll(async () => {
  directory = await makeScratch("stats");
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

const place = (name: string): string => join(directory, name);

type Fields = Readonly<Record<string, unknown>>;

function infoOf(stats: Fields): Fields {
  return asRecord(stats["alloc-info"]);
}

/** Those of the file add up to its length, those of the disk to what its images serve. */
function expectSums(path: string, stats: Fields): void {
  const info = infoOf(stats);
  const file = statSync(path);
  const { "file-size": fileSize, "used-overrun": _, ...classes } = info;
  const sum = Object.keys(classes).reduce((bytes, name) => bytes + numberIn(classes, name), 0);
  expect(sum).toBe(file.size);
  expect(fileSize).toBe(file.size);
  const guest = asRecord(stats["guest"]);
  const guestSum = Object.keys(guest).reduce((bytes, name) => bytes + numberIn(guest, name), 0);
  const layers = asArray(stats["layers"]).map(asRecord);
  const served = layers.reduce((bytes, layer) => bytes + numberIn(layer, "bytes"), 0);
  expect(served + numberIn(stats, "no-layer")).toBe(guestSum);
}

async function expectExact(path: string, format: "raw" | "qcow2" | "qed"): Promise<Fields> {
  const stats = engineStats(path, format);
  expect(infoOf(stats)).toEqual(await expectedAllocation(path, format));
  expectSums(path, stats);
  return stats;
}

/** Where the image has the byte of the disk at `guestOffset`. */
async function hostOffset(path: string, guestOffset: number): Promise<number> {
  const rows = asArray(await imageMap([path])).map(asRecord);
  const row = rows.findLast((candidate) => numberIn(candidate, "start") <= guestOffset) ?? {};
  return numberIn(row, "offset") + guestOffset - numberIn(row, "start");
}

/** Writes of all kinds. */
const WORK = [
  "write -P 1 0 1M",
  "write -P 2 3000k 70k",
  "write -z 2M 256k",
  "write -P 3 7M 1M",
  "discard 512k 128k",
];

interface Kind {
  readonly name: string;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly work?: readonly string[];
}

const KINDS: readonly Kind[] = [
  { name: "fresh", work: [] },
  { name: "written" },
  { name: "version 2", options: { compat: "0.10" }, work: WORK.slice(0, 2) },
  { name: "extended L2", options: { extended_l2: "on" } },
  { name: "small clusters", options: { cluster_size: 4 * KiB } },
  { name: "large clusters", options: { cluster_size: 2 * MiB } },
  ...["off", "metadata", "falloc", "full"].map((mode) => ({
    name: `preallocation ${mode}`,
    options: { preallocation: mode },
    work: [],
  })),
  ...[1, 2, 4, 8, 16, 32, 64].map((bits) => ({
    name: `${bits} bit refcounts`,
    options: { refcount_bits: bits, cluster_size: 4 * KiB },
  })),
];

describe("the image file, against a computation of its own", () => {
  it.each(KINDS)("qcow2, $name", async ({ name, options = {}, work = WORK }) => {
    const path = place(`${name}.qcow2`);
    await createImage(path, "qcow2", { size: SIZE, options });
    if (work.length > 0) await qemuIo(path, "qcow2", work);
    const stats = await expectExact(path, "qcow2");
    expect(numberIn(infoOf(stats), "used-data")).toBeGreaterThan(0);
  });

  it("qcow2 with snapshots, bitmaps, compressed and leaked clusters, and holes of the host", async () => {
    const path = place("all.qcow2");
    await createImage(path, "qcow2", { size: SIZE });
    await qemuIo(path, "qcow2", WORK);
    await run("qemu-img", ["snapshot", "-c", "one", path]);
    await run("qemu-img", ["bitmap", "--add", path, "map"]);
    await qemuIo(path, "qcow2", [
      "write -P 9 0 200k",
      "write -c -P 4 5M 64k",
      "write -c -P 5 5184k 64k",
    ]);
    await expectExact(path, "qcow2");
    // The file starts and ends on a boundary of what holes can be made of.
    truncateSync(path, Math.ceil(statSync(path).size / (64 * KiB)) * 64 * KiB);
    const length = statSync(path).size;
    appendFileSync(path, Buffer.alloc(MiB, 1));
    const longer = infoOf(await expectExact(path, "qcow2"));
    expect(numberIn(longer, "unused-data")).toBeGreaterThanOrEqual(MiB);
    await run("fallocate", ["-p", "-o", String(length + 256 * KiB), "-l", String(64 * KiB), path]);
    const data = await hostOffset(path, 7.5 * MiB);
    await run("fallocate", ["-p", "-o", String(data), "-l", String(64 * KiB), path]);
    const punched = infoOf(await expectExact(path, "qcow2"));
    expect(numberIn(punched, "unused-zero")).toBe(numberIn(longer, "unused-zero") + 64 * KiB);
    expect(numberIn(punched, "used-zero")).toBe(numberIn(longer, "used-zero") + 64 * KiB);
  });

  it("qcow2 that was cut off: what is lacking is overrun", async () => {
    const path = place("cut.qcow2");
    await createImage(path, "qcow2", { size: SIZE });
    await qemuIo(path, "qcow2", ["write -P 1 0 1M"]);
    const whole = infoOf(engineStats(path));
    truncateSync(path, statSync(path).size - 100_000);
    const cut = infoOf(await expectExact(path, "qcow2"));
    expect(numberIn(cut, "used-overrun")).toBe(numberIn(whole, "used-overrun") + 100_000);
  });

  it("the fresh image of the specification: 196616 bytes, 65528 overrun", async () => {
    const path = place("seed.qcow2");
    await createImage(path, "qcow2", { size: 64 * MiB });
    expect(infoOf(engineStats(path))).toEqual({
      "file-size": 196616,
      "used-data": 196616,
      "used-zero": 0,
      "used-discarded": 0,
      "used-overrun": 65528,
      "unused-data": 0,
      "unused-zero": 0,
      "unused-discarded": 0,
    });
  });

  it.each([
    { cluster_size: 4 * KiB, table_size: 2 },
    { cluster_size: 64 * KiB, table_size: 4 },
  ])("QED, %o", async (options) => {
    const path = place(`${options.cluster_size}.qed`);
    await createImage(path, "qed", { size: SIZE, options });
    await expectExact(path, "qed");
    await qemuIo(path, "qed", WORK.slice(0, 4));
    await expectExact(path, "qed");
    appendFileSync(path, Buffer.alloc(MiB, 1));
    expect(infoOf(await expectExact(path, "qed"))).toMatchObject({ "unused-data": MiB });
  });

  it("raw, with holes and of an odd length", async () => {
    const path = place("odd.raw");
    writeFileSync(path, new Random("raw").bytes(100_001));
    truncateSync(path, 3 * MiB + 1);
    const stats = await expectExact(path, "raw");
    expect(asRecord(stats["guest"])).toMatchObject({ compressed: 0, unallocated: 0 });
  });

  it("on a block device all is data: nobody can ask it for holes", async () => {
    const path = place("device.img");
    await createImage(path, "qcow2", { size: SIZE });
    await qemuIo(path, "qcow2", ["write -P 1 1M 1M"]);
    const used = statSync(path).size;
    truncateSync(path, 8 * MiB);
    await withLoop(path, [], async (device) => {
      const { stdout } = await tsimgfs(["stats", "--output", "json", device]);
      const info = infoOf(asRecord(JSON.parse(stdout)));
      expect(info).toEqual({
        "file-size": 8 * MiB,
        "used-data": used,
        "used-zero": 0,
        "used-discarded": 0,
        "used-overrun": 0,
        "unused-data": 8 * MiB - used,
        "unused-zero": 0,
        "unused-discarded": 0,
      });
    });
  });

  it("random work on random images", async () => {
    const random = new Random("stats");
    for (let round = 0; round < byScale(4, 40); round++) {
      const path = place(`random ${round}.qcow2`);
      const options = {
        cluster_size: random.pick([512, 4 * KiB, 64 * KiB]),
        refcount_bits: random.pick([8, 16, 64]),
      };
      await createImage(path, "qcow2", { size: 2 * MiB, options });
      const work = Array.from({ length: 12 }, () => {
        const offset = random.below(1900) * KiB;
        return `${random.pick(["write -P 7", "write -z", "discard"])} ${offset} ${random.between(1, 100)}k`;
      });
      await qemuIo(path, "qcow2", work);
      await expectExact(path, "qcow2");
    }
  });
});

describe("the disk, against qemu-img", () => {
  it("has as many clusters as qemu-img check counts, and compressed ones", async () => {
    const path = place("check.qcow2");
    await createImage(path, "qcow2", { size: SIZE });
    await qemuIo(path, "qcow2", [...WORK, "write -c -P 4 5M 64k", "write -c -P 5 5184k 64k"]);
    const check = asRecord(await runJson("qemu-img", ["check", "--output", "json", path]));
    const guest = asRecord(engineStats(path)["guest"]);
    const clusters = (numberIn(guest, "data") + numberIn(guest, "compressed")) / (64 * KiB);
    expect(clusters).toBe(numberIn(check, "allocated-clusters"));
    expect(numberIn(guest, "compressed")).toBe(numberIn(check, "compressed-clusters") * 64 * KiB);
  });

  it("comes from the images of its chain as qemu-img map says", async () => {
    const [base, middle, top] = [place("base.raw"), place("middle.qed"), place("top.qcow2")];
    // The backing file ends before the disk, and has a hole.
    writeFileSync(base, new Random("base").bytes(2 * MiB));
    await run("fallocate", ["-p", "-o", "256KiB", "-l", "64KiB", base]);
    const backing = { file: base, format: "raw" } as const;
    await createImage(middle, "qed", { size: 6 * MiB, backing });
    await qemuIo(middle, "qed", ["write -P 5 1M 100k", "write -P 6 5M 1M"]);
    await createImage(top, "qcow2", { size: SIZE, backing: { file: middle, format: "qed" } });
    await qemuIo(top, "qcow2", ["write -P 7 0 65k", "write -z 5M 128k", "write -P 7 7M 64k"]);
    const rows = asArray(await imageMap([top])).map(asRecord);
    const bytes = (isWanted: (row: Fields) => boolean): number =>
      rows.filter(isWanted).reduce((sum, row) => sum + numberIn(row, "length"), 0);
    const stats = engineStats(top);
    expect(stats["layers"]).toEqual(
      [top, middle, base].map((filename, depth) => ({
        depth,
        filename,
        bytes: bytes((row) => booleanIn(row, "present") && numberIn(row, "depth") === depth),
      })),
    );
    expect(stats["no-layer"]).toBe(bytes((row) => !booleanIn(row, "present")));
    const isTop = (row: Fields): boolean => booleanIn(row, "present") && row["depth"] === 0;
    expect(stats["guest"]).toEqual({
      data: bytes((row) => isTop(row) && booleanIn(row, "data")),
      zero: bytes((row) => isTop(row) && !booleanIn(row, "data")),
      unallocated: bytes((row) => !isTop(row)),
      compressed: 0,
    });
    expectSums(top, stats);
  });

  it("has an entry of its own for an external data file", async () => {
    const [path, data] = [place("external.qcow2"), place("external.data")];
    await createImage(path, "qcow2", { size: SIZE, options: { data_file: data } });
    await qemuIo(path, "qcow2", ["write -P 1 1M 1M"]);
    const stats = await expectExact(path, "qcow2");
    expect(stats["data-file"]).toEqual({
      filename: data,
      "alloc-info": await expectedAllocation(data, "raw"),
    });
    expect(asRecord(stats["guest"])).toMatchObject({ data: MiB, unallocated: SIZE - MiB });
  });
});

describe("tsimgfs stats", () => {
  it("prints aligned columns, or JSON", async () => {
    const path = place("printed.qcow2");
    await createImage(path, "qcow2", { size: 64 * MiB });
    await qemuIo(path, "qcow2", ["write -P 1 0 16M"]);
    const json = await tsimgfs(["stats", "--output", "json", path]);
    expect(JSON.parse(json.stdout)).toEqual({
      format: "qcow2",
      filename: path,
      "virtual-size": 64 * MiB,
      "cluster-size": 64 * KiB,
      ...engineStats(path),
    });
    const { stdout } = await tsimgfs(["stats", path]);
    const lines = stdout.split("\n");
    expect(lines).toContain("virtual size: 64 MiB (67108864 bytes)");
    const columns = (name: string): string[] => {
      const found = lines.filter((line) => line.startsWith(`  ${name} `));
      expect(found, name).toHaveLength(1);
      return (found[0] ?? "").trim().split(/ {2,}/);
    };
    expect(columns("data")).toEqual(["data", "16 MiB", "16777216", "25.0%", "#####"]);
    expect(columns("unallocated").at(-1)).toBe("###############");
    expect(columns("unused-data")).toEqual(["unused-data", "0 B", "0", "0.0%"]);
    const ends = lines.filter((line) => line.includes("%")).map((line) => line.indexOf("%"));
    expect(new Set(ends).size).toBe(1);
  });

  it("says in one line what is wrong", async () => {
    const damaged = place("damaged.qcow2");
    buildQcow2({ virtualSize: MiB }).setRefcountTable(0, 0x2_0200n).write(damaged);
    await expectRefusal(["stats", damaged], [/damaged\.qcow2: refcount block 0 offset 0x20200/]);
    const l1 = place("l1.qcow2");
    buildQcow2({ virtualSize: MiB }).setL1(0, 0x200n).write(l1);
    await expectRefusal(
      ["stats", "--output", "json", l1],
      [/l1\.qcow2: L2 table offset 0x200 is not/],
    );
    const qed = place("damaged.qed");
    buildQed({ clusters: { 0: { kind: "entry", entry: 2 ** 40 } } }).write(qed);
    await expectRefusal(["stats", qed], [/damaged\.qed: the table entry at 0x[0-9a-f]+ is not/]);
    await expectRefusal(["stats", place("none.qcow2")], [/none\.qcow2: no such file/]);
    await expectRefusal(["stats", directory], [/is a directory/]);
    await expectRefusal(["stats", "--output", "yaml", l1], [/--output/]);
    const { stdout } = await attemptTsimgfs(["stats", damaged]);
    expect(stdout).toBe("");
  });
});
