// `write -c` of `tsimgfs io` beside qemu-io: the same words, and images that QEMU reads, checks and goes on with.

import { readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { qemuCheck } from "../support/check-oracle.ts";
import { expectSameDisk, ioBesideQemu } from "../support/io-beside-qemu.ts";
import { convertToRaw, createImage, qemuIo } from "../support/qemu.ts";
import { Random } from "../support/random.ts";
import { run } from "../support/run.ts";
import { byScale } from "../support/scale.ts";
import { makeScratch } from "../support/scratch.ts";
import { attemptTsimgfs, tsimgfs } from "../support/tsimgfs.ts";

const KIB = 1024;
const MIB = KIB * KIB;

/** The largest disk has a last cluster that is cut short. */
const SIZE = 9 * MIB - 512;

/** Images, and what is written to them at once: whole clusters. */
const SAMPLES = [
  { name: "v3", options: {}, clusterSize: 64 * KIB, unit: 512 * KIB },
  { name: "v2", options: { compat: "0.10" }, clusterSize: 64 * KIB, unit: 512 * KIB },
  { name: "sub-clusters", options: { extended_l2: "on" }, clusterSize: 64 * KIB, unit: 512 * KIB },
  { name: "zstd", options: { compression_type: "zstd" }, clusterSize: 64 * KIB, unit: 512 * KIB },
  { name: "small", options: { cluster_size: 512 }, clusterSize: 512, unit: 64 * KIB },
  { name: "large", options: { cluster_size: 2 * MIB }, clusterSize: 2 * MIB, unit: 2 * MIB },
] as const;

let directory: string;
let text: string;
let noise: string;

beforeAll(async () => {
  directory = await makeScratch("io-compressed");
  text = join(directory, "text");
  noise = join(directory, "noise");
  writeFileSync(text, new Random("text").text(SIZE));
  writeFileSync(noise, new Random("noise").bytes(2 * MIB));
});

afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function newImage(
  name: string,
  options: Readonly<Record<string, string | number>>,
): Promise<string> {
  const path = join(directory, `${name}.qcow2`);
  rmSync(path, { force: true });
  await createImage(path, "qcow2", { size: SIZE, options });
  return path;
}

describe.each(SAMPLES)("write -c with $name beside qemu-io", ({ name, options, unit }) => {
  it("writes the same disk", async () => {
    const image = await newImage(name, options);
    const size = 4 * unit + unit / 2 - 512;
    await run("qemu-img", ["resize", "-q", "--shrink", image, String(size)]);
    const tail = unit / 2 - 512;
    const pair = await ioBesideQemu(image, { format: "qcow2" }, [
      ...[`write -c -P 7 0 ${unit}`, `write -c -s ${text} ${unit} ${unit}`, `read -P 7 0 ${unit}`],
      ...[`write -c -s ${noise} ${2 * unit} ${unit}`, `write -qc -P 0 ${3 * unit} ${unit}`],
      ...[`write -C -c ${4 * unit} ${tail}`, `read -P 0 ${3 * unit} ${unit}`, "map"],
      ...["alloc 0 9M", "write -c 0 0", "length"],
    ]);
    await expectSameDisk("qcow2", pair);
    const [ours, theirs] = await Promise.all([qemuCheck(pair.ours), qemuCheck(pair.theirs)]);
    expect(ours.counts?.compressedClusters).toBe(theirs.counts?.compressedClusters);
    expect(ours.counts?.allocatedClusters).toBe(theirs.counts?.allocatedClusters);
  });

  it("goes on under QEMU", async () => {
    const image = await newImage(`${name} on`, options);
    await tsimgfs(["io", "-c", `write -c -s ${text} 0 ${4 * unit}`, image]);
    const [middle, half] = [unit / 2 + 1000, unit / 2];
    await qemuIo(image, "qcow2", [
      ...[`write -P 1 ${middle} ${unit}`, `write -z ${2 * unit} ${half}`],
      ...[`discard ${3 * unit} ${unit}`, `read -P 1 ${middle} ${unit}`],
    ]);
    await run("qemu-img", ["check", image]);
    await tsimgfs(["io", "-c", `read -P 1 ${middle} ${unit}`, image]);
    const flat = join(directory, "flat");
    await convertToRaw(image, "qcow2", flat);
    const expected = Buffer.alloc(SIZE);
    readFileSync(text).copy(expected, 0, 0, 3 * unit);
    expected.fill(1, middle, middle + unit).fill(0, 2 * unit, 2 * unit + half);
    expect(readFileSync(flat).equals(expected)).toBe(true);
  });
});

describe("write -c beside qemu-io", () => {
  it("refuses the same", async () => {
    const image = await newImage("refusals", {});
    await qemuIo(image, "qcow2", ["write 0 64k", "write -c 64k 64k", "write -z 128k 64k"]);
    const pair = await ioBesideQemu(image, { format: "qcow2" }, [
      ...["write -c 0 64k", "write -c 64k 64k", "write -c 512 64k", "write -c 128k 512"],
      ...["write -c 8M 1M", "write -c 9M 64k", "write -c 100 64k", "write -c 0 100"],
      ...["write -c 192k 100k", "write -c 128k 64k", `write -c -s ${noise} 0 64k`],
      ...["read -P 0 192k 1M", "map"],
    ]);
    await expectSameDisk("qcow2", pair);
    expect(pair.result.stderr).toMatch(
      /^tsimgfs: .*: the cluster at guest offset 0x0 is allocated/,
    );
  });

  it.each([
    ["raw", {}],
    ["qed", {}],
    ["qcow2", { data_file: "data.raw" }],
  ] as const)("is not for %s %j", async (format, options) => {
    const image = join(directory, `without.${format}`);
    const list = Object.entries(options).map(([key, value]) => `${key}=${join(directory, value)}`);
    const args = ["create", "-q", "-f", format, ...list.flatMap((item) => ["-o", item])];
    await run("qemu-img", [...args, image, "1M"]);
    const ours = await attemptTsimgfs(["io", "-f", format, "-c", "write -c 0 64k", image]);
    expect(ours.status).toBe(1);
    expect(ours.stdout).toBe("write failed: Operation not supported\n");
    await expect(qemuIo(image, format, ["write -c 0 64k"])).rejects.toThrow(
      /Operation not supported/,
    );
    await qemuIo(image, format, ["read -P 0 0 1M"]);
  });

  it("takes no space of the host but for the streams", async () => {
    const image = await newImage("space", {});
    const before = statSync(image).blocks;
    await tsimgfs(["io", "-c", "write -c -P 5 0 8M", image]);
    // 128 of a block each, and tables.
    expect((statSync(image).blocks - before) * 512).toBeLessThan(MIB);
  });

  it("hides what a backing file has", async () => {
    const base = join(directory, "base.raw");
    await createImage(base, "raw", { size: 5 * MIB });
    await qemuIo(base, "raw", ["write -P 9 0 5M"]);
    const image = join(directory, "overlay.qcow2");
    const backing = { file: base, format: "raw" } as const;
    await createImage(image, "qcow2", { size: SIZE, backing });
    const pair = await ioBesideQemu(image, { format: "qcow2" }, [
      ...["write -c -P 1 64k 128k", "write -c -P 0 4M 64k", "write -c -P 2 8M 1048064"],
      ...["write -P 3 100k 1k", "read -P 9 0 64k", "read -P 1 64k 36k", "read -P 3 100k 1k"],
      ...["read -P 1 101k 91k", "read -P 0 4M 64k", "read -P 2 8M 1048064", "map"],
    ]);
    await expectSameDisk("qcow2", pair);
  });

  it("keeps a model's bytes among all else that can be done", async () => {
    // Not beside qemu-io: version 7.2 damages an image when a stream is freed and others follow.
    for (const { name, options, clusterSize } of SAMPLES.slice(0, byScale(5, 6))) {
      for (let round = 0; round < byScale(1, 30); round++) {
        const random = new Random(`compressed ${name} ${round}`);
        const image = await newImage(`${name} model`, options);
        const work = Array.from({ length: 50 }, () => randomWork(random, clusterSize));
        const commands = work.flatMap(({ command }) => ["-c", command]);
        const { stdout } = await attemptTsimgfs(["io", ...commands, image]);
        const model = Buffer.alloc(SIZE);
        const results = stdout.match(/^(wrote|discard|write failed).*$/gm) ?? [];
        expect(results).toHaveLength(work.length);
        work.forEach(({ apply }, index) => {
          if (results[index] !== "write failed: Input/output error") apply(model);
        });
        const flat = join(directory, "flat");
        await convertToRaw(image, "qcow2", flat);
        expect(readFileSync(flat).equals(model), commands.join(" ")).toBe(true);
        await run("qemu-img", ["check", image]);
      }
    }
  });
});

interface Work {
  readonly command: string;
  /** Does the same to the bytes of the disk. */
  readonly apply: (disk: Buffer) => void;
}

/** One thing to do: a compressed cluster, a write, zeros or a discard, near the others. */
function randomWork(random: Random, clusterSize: number): Work {
  const pattern = random.below(256);
  const clusters = Math.min(40, Math.floor(SIZE / clusterSize));
  const cluster = random.below(clusters) * clusterSize;
  const offset = random.below(clusters * clusterSize);
  const length = random.between(1, Math.min(3 * clusterSize, SIZE - offset));
  switch (random.below(6)) {
    case 0:
      return {
        command: `write -P ${pattern} ${offset} ${length}`,
        apply: (disk) => disk.fill(pattern, offset, offset + length),
      };
    case 1:
      return {
        command: `write -zu ${offset} ${length}`,
        apply: (disk) => disk.fill(0, offset, offset + length),
      };
    case 2:
      return {
        command: `discard ${cluster} ${clusterSize}`,
        apply: (disk) => disk.fill(0, cluster, cluster + clusterSize),
      };
    case 3:
      return {
        command: `write -c -s ${text} ${cluster} ${clusterSize}`,
        apply: (disk) => readFileSync(text).copy(disk, cluster, 0, clusterSize),
      };
    default:
      return {
        command: `write -c -P ${pattern} ${cluster} ${clusterSize}`,
        apply: (disk) => disk.fill(pattern, cluster, cluster + clusterSize),
      };
  }
}
