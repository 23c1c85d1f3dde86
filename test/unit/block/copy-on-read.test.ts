/**
 * Copy-on-read: which clusters of an overlay become data or zeros by being read, as qemu-img map says it;
 * and that nothing of the backing file is needed for them any more.
 */

import fs from "node:fs";
import { describe, expect, it } from "vitest";
import type { Disk } from "../../../src/block/disk.ts";
import { Random } from "../../support/random.ts";
import { LONG } from "../../support/scale.ts";
import { expectBytes } from "../expect-bytes.ts";
import { OVERLAY_KINDS, type OverlayKind, putOverlay, spoilBacking } from "./overlays.ts";
import { type DiskFiles, readDisk, withDiskFiles } from "./writable-disk.ts";

/** How a disk is read as a whole: ranges in the order in which they are read. */
type ReadOrder = (virtualSize: number, clusterSize: number) => [offset: number, length: number][];

/** Pieces from the start to the end. */
const pieces =
  (size: number): ReadOrder =>
  (virtualSize) => {
    const count = Math.ceil(virtualSize / size);
    return Array.from({ length: count }, (_, index) => {
      const offset = index * size;
      return [offset, Math.min(size, virtualSize - offset)];
    });
  };

function shuffled<T>(items: T[], random: Random): T[] {
  for (let index = items.length - 1; index > 0; index--) {
    const other = random.below(index + 1);
    const [one, two] = [items[index], items[other]];
    if (one !== undefined && two !== undefined) [items[index], items[other]] = [two, one];
  }
  return items;
}

const ORDERS: readonly { readonly name: string; readonly order: ReadOrder }[] = [
  { name: "all at once", order: (size) => [[0, size]] },
  { name: "one byte of each cluster", order: (size, cluster) => oneByteOfEach(size, cluster) },
  {
    name: "in pieces that fit nothing",
    order: (size, cluster) => pieces(Math.floor(cluster * 1.37) + 1)(size, cluster),
  },
  {
    name: "in a random order",
    order: (size, cluster) =>
      shuffled(pieces(Math.max(cluster / 4, 512))(size, cluster), new Random("order")),
  },
];

function oneByteOfEach(virtualSize: number, clusterSize: number): [number, number][] {
  return pieces(clusterSize)(virtualSize, clusterSize).map(([offset, length]) => {
    return [offset + length - 1, 1];
  });
}

/** Reads in some order; each piece must be as `content` says. */
function readAll(disk: Disk, content: Buffer, order: ReadOrder, clusterSize: number): void {
  for (const [offset, length] of order(content.length, clusterSize)) {
    const bytes = readDisk(disk, offset, length);
    expectBytes(bytes, content.subarray(offset, offset + length), `read ${offset}+${length}`);
  }
}

/** What clusters are when all of them were read. */
function lettersAfter(clusters: string, backing: string, { options }: OverlayKind): string {
  const zeros = options?.version === 2 ? "D" : "z";
  return [...clusters]
    .map((letter, index) => {
      if (letter === "D" || letter === "C") return "D";
      if (letter === "z") return zeros;
      return backing[index] === "D" ? "D" : zeros;
    })
    .join("");
}

/** Checks an overlay that was read as a whole. */
async function expectCopied(
  files: DiskFiles,
  { file, clusterBits }: OverlayKind,
  expected: { content: Buffer; letters: string },
): Promise<void> {
  await files.expectClean(file);
  const letters = await files.clusters(file, 2 ** clusterBits);
  // A cluster with some zeros is one of data, also where sub-clusters tell them apart.
  expect(letters.replaceAll("DZ", "D")).toBe(expected.letters);
  spoilBacking(files);
  expectBytes(await files.converted(file), expected.content, "over another backing file");
}

describe.each(OVERLAY_KINDS)("an overlay with $name", (kind) => {
  const clusterSize = 2 ** kind.clusterBits;
  const hasZeros = kind.options?.version !== 2;
  const isLarge = clusterSize > 2 ** 20;
  const isMain = LONG || ["clusters of 4096 bytes", "sub-clusters"].includes(kind.name);
  const own = isLarge ? "..D" : `...D.${hasZeros ? "zz" : "DD"}......D....DD.............`;
  const backing = isLarge ? "D0D" : "DD0DD0D0000D0D0DDDDD00D0DDD0D0DD";
  const letters = lettersAfter(own, backing, kind);

  it.each(isMain ? ORDERS : ORDERS.slice(-1))("has all that was read $name", async ({ order }) => {
    await withDiskFiles(async (files) => {
      const content = putOverlay(files, kind, { clusters: own, backing });
      files.use(kind.file, ({ disk }) => {
        readAll(disk, content, order, clusterSize);
        spoilBacking(files);
        readAll(disk, content, order, clusterSize);
      });
      await expectCopied(files, kind, { content, letters });
    });
  });

  it("has only the clusters that were read", async () => {
    await withDiskFiles(async (files) => {
      const content = putOverlay(files, kind, { clusters: own, backing });
      files.use(kind.file, ({ disk }) => {
        const length = clusterSize + 2;
        const shown = readDisk(disk, clusterSize - 1, length);
        expectBytes(shown, content.subarray(clusterSize - 1, clusterSize - 1 + length));
      });
      await files.expectClean(kind.file);
      const shown = await files.clusters(kind.file, clusterSize);
      expect(shown.slice(0, 3)).toBe(letters.slice(0, 3));
      expect(shown.slice(3)).not.toMatch(/[Zz]{3}/);
      expectBytes(await files.converted(kind.file), content);
    });
  });

  const ends = [
    { what: "shorter, within a cluster", backingSize: 2 * clusterSize + 700, cut: 0 },
    { what: "shorter, at the end of a cluster", backingSize: 2 * clusterSize, cut: 0 },
    { what: "one byte long", backingSize: 1, cut: 512 },
    { what: "empty", backingSize: 0, cut: 0 },
    { what: "longer, the last cluster being cut short", backingSize: undefined, cut: 512 },
  ];

  it.each(isMain ? ends : ends.slice(0, 1))(
    "copies from a backing file that is $what",
    async ({ backingSize, cut }) => {
      const clusters = isLarge ? ".." : "....D...";
      const base = isLarge ? "DDDD" : "DDDD0D0DDDD";
      await withDiskFiles(async (files) => {
        const virtualSize = clusters.length * clusterSize - (clusterSize > cut ? cut : 0);
        const content = putOverlay(files, kind, {
          ...{ clusters, backing: base },
          ...{ virtualSize, backingSize },
        });
        files.use(kind.file, ({ disk }) => {
          readAll(disk, content, pieces(3000 + clusterSize), clusterSize);
        });
        const below = [...base].map((letter, index) => {
          return backingSize === undefined || index * clusterSize < backingSize ? letter : "0";
        });
        const after = lettersAfter(clusters, below.join(""), kind);
        await expectCopied(files, kind, { content, letters: after });
      });
    },
  );

  it("is not written to where nothing is to be copied", async () => {
    await withDiskFiles(async (files) => {
      const content = putOverlay(files, kind, { clusters: own, backing });
      const before = files.bytes(kind.file);
      fs.utimesSync(files.path(kind.file), 1_000_000, 1_000_000);
      files.use(kind.file, ({ disk }) => expectBytes(readDisk(disk), content), {
        policy: { copyOnRead: false },
      });
      files.use(kind.file, ({ disk }) => readDisk(disk, 3 * clusterSize, isLarge ? 0 : 99));
      expectBytes(files.bytes(kind.file), before);
      // Leaks of version 2 are looked for by every writer.
      if (!hasZeros) return;
      expect(fs.statSync(files.path(kind.file)).mtimeMs).toBe(1_000_000_000);
    });
  });
});
