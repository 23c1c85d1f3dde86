/** Copy-on-read into clusters of which the overlay has some sub-clusters, also together with a snapshot. */

import { describe, expect, it } from "vitest";
import { type Qcow2Options, qcow2Bytes } from "../../support/qcow2-builder.ts";
import type { Qcow2Cluster } from "../../support/qcow2-tree-builder.ts";
import { convertToRaw } from "../../support/qemu.ts";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { expectBytes } from "../expect-bytes.ts";
import { spoilBacking } from "./overlays.ts";
import { type DiskFiles, readDisk, withDiskFiles } from "./writable-disk.ts";

const NAME = "disk.qcow2";
const CLUSTER = 16384;
const UNIT = 512;

/** What sub-clusters are, by letters: D data, z zeros, anything else: nothing. */
function subclusters(letters: string, bytes: Buffer): Qcow2Cluster {
  let allocated = 0;
  let zero = 0;
  [...letters.padEnd(32, ".")].forEach((letter, index) => {
    if (letter === "D") allocated += 2 ** index;
    if (letter === "z") zero += 2 ** index;
  });
  return { kind: "subclusters", bytes, allocated, zero };
}

interface Sample {
  /** Of each cluster, from the first one on. */
  readonly clusters: readonly string[];
  /** Of each sub-cluster of the backing file: 0 zeros, else data. */
  readonly backing: string;
  readonly options?: Qcow2Options;
}

/** Writes an overlay and its backing file; returns what its disk contains, as qemu-img reads it. */
async function putSample(
  files: DiskFiles,
  { clusters, backing, options }: Sample,
): Promise<Buffer> {
  const random = new Random(`sub-clusters ${backing}`);
  const base = [...backing].map((letter) =>
    letter === "0" ? Buffer.alloc(UNIT) : random.bytes(UNIT),
  );
  files.put("base.raw", Buffer.concat(base));
  const own: Record<number, Qcow2Cluster> = {};
  clusters.forEach((letters, index) => {
    if (letters !== "") own[index] = subclusters(letters, random.bytes(CLUSTER));
  });
  const image = {
    ...{ clusterBits: 14, extendedL2: true, clusters: own },
    ...{ virtualSize: clusters.length * CLUSTER, backingFile: "base.raw", backingFormat: "raw" },
  };
  files.put(NAME, qcow2Bytes({ ...image, ...options }));
  return await files.converted(NAME);
}

const repeated = (text: string, length: number): string =>
  text.repeat(Math.ceil(length / text.length)).slice(0, length);

describe("an overlay with sub-clusters", () => {
  it("says of each one what it is", async () => {
    await withDiskFiles(async (files) => {
      const content = await putSample(files, {
        clusters: ["", "DDzz........DD", "", ""],
        backing: `${repeated("D0", 32)}${repeated("DD00", 32)}${repeated("0", 32)}${repeated("D", 32)}`,
      });
      files.use(NAME, ({ disk }) => expectBytes(readDisk(disk), content));
      await files.expectClean(NAME);
      expect(await files.clusters(NAME, UNIT)).toBe(
        [
          repeated("DZ", 32),
          // A run of sub-clusters that has some data is data; those that are zeros as a whole are told.
          `DDZZ${"D".repeat(8)}DD${"D".repeat(18)}`,
          repeated("z", 32),
          repeated("D", 32),
        ].join(""),
      );
      spoilBacking(files);
      expectBytes(await files.converted(NAME), content);
    });
  });

  it("keeps the sub-clusters of a cluster that a snapshot has too", async () => {
    await withDiskFiles(async (files) => {
      const content = await putSample(files, {
        clusters: ["....DDDDzzzz", "DDDD", "zzzz....DDDD....", "....zzzz"],
        backing: repeated("D", 4 * 32),
        options: { snapshots: [{ name: "one" }] },
      });
      files.use(NAME, ({ disk }) => expectBytes(readDisk(disk, 0, 10), content.subarray(0, 10)));
      await files.expectClean(NAME);
      expectBytes(await files.converted(NAME), content);
      files.use(NAME, ({ disk }) => {
        expectBytes(readDisk(disk), content, "read anew");
        expectBytes(readDisk(disk), content, "read again");
      });
      await files.expectClean(NAME);
      const flat = files.path("snapshot");
      await convertToRaw(files.path(NAME), "qcow2", flat, ["-l", "one"]);
      expectBytes(files.bytes("snapshot"), content, "the snapshot");
      spoilBacking(files);
      expectBytes(await files.converted(NAME), content, "over another backing file");
    });
  });

  it("tells zeros behind a cluster that a snapshot has too", async () => {
    await withDiskFiles(async (files) => {
      await putSample(files, {
        clusters: ["....DDDD", "", ""],
        backing: repeated("0", 3 * 32),
        options: { snapshots: [{ name: "one" }] },
      });
      files.use(NAME, ({ disk }) => readDisk(disk, 20 * UNIT, 40 * UNIT));
      await files.expectClean(NAME);
      const letters = await files.clusters(NAME, UNIT);
      expect(letters.slice(32, 64)).toBe(repeated("z", 32));
    });
  });

  it.each(
    Array.from({ length: byScale(12, 200) }, (_, index) => ({
      index,
      options:
        index % 3 === 0
          ? { snapshots: [{ name: "one" }] }
          : index % 3 === 1
            ? { dataFile: "disk.data" }
            : {},
    })),
  )("has all that was read in random pieces ($index, $options)", async ({ index, options }) => {
    await withDiskFiles(async (files) => {
      const random = new Random(`random sub-clusters ${index}`);
      const letters = (choices: string, length: number): string =>
        Array.from({ length }, () => choices[random.below(choices.length)]).join("");
      const clusters = Array.from({ length: 6 }, () =>
        random.below(3) === 0 ? "" : letters(random.pick(["D.", "Dz..", "z.", "D..."]), 32),
      );
      const backing = letters(random.pick(["D0", "D", "D000"]), 6 * 32 - 3);
      const data =
        "dataFile" in options ? { dataFile: files.put("disk.data", new Uint8Array()) } : options;
      if ("dataFile" in options) files.put("disk.data", new Random("data").bytes(6 * CLUSTER));
      const content = await putSample(files, { clusters, backing, options: data });
      files.use(NAME, ({ disk }) => {
        for (let turn = 0; turn < 60; turn++) {
          const offset = random.below(content.length);
          const length = random.between(1, Math.min(content.length - offset, 3 * CLUSTER));
          const shown = readDisk(disk, offset, length);
          expectBytes(shown, content.subarray(offset, offset + length), `${offset}+${length}`);
        }
        expectBytes(readDisk(disk), content);
      });
      await files.expectClean(NAME);
      spoilBacking(files);
      expectBytes(await files.converted(NAME), content, "over another backing file");
    });
  });
});
