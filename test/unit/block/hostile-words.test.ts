/** Writing to images with random words in their tables: only errors of ours may come of it. */

import { describe, it } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import { buildQcow2, type Qcow2Image } from "../../support/qcow2-builder.ts";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { type DiskFiles, withDiskFiles } from "./writable-disk.ts";

const NAME = "disk.qcow2";
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

const REGIONS = [
  ...["l2 0", "l2 0", "l2 1", "l1", "l1"],
  ...["refcount table", "refcount block 0", "snapshot table"],
] as const;

/** An image with a little of everything, of small clusters. */
function smallImage(): Qcow2Image {
  const bytes = Buffer.alloc(512, 0x5a);
  return buildQcow2({
    clusterBits: 9,
    virtualSize: 200 * 512,
    clusters: Object.fromEntries(
      [0, 1, 2, 7, 90].map((index) => [index, { kind: "data", bytes } as const]),
    ),
    snapshots: [{ name: "one" }],
  });
}

describe("tables with random words in them", () => {
  it("do no more harm than errors of ours", async () => {
    const random = new Random("hostile words");
    await withDiskFiles(async (files) => {
      for (let round = 0; round < byScale(150, 10_000); round++) {
        const image = smallImage();
        for (let count = random.between(1, 4); count > 0; count--) {
          const { offset, length } = image.region(random.pick(REGIONS));
          const at = offset + random.below(Math.min(length, 96) / 8) * 8;
          image.setU64(at, randomWord(random, image.bytes.length));
        }
        files.put(NAME, image.bytes);
        scribble(files, random);
      }
    });
  }, 600_000);
});

/** A word that a table may have: a place in the file, with any flags. */
function randomWord(random: Random, length: number): bigint {
  const flags = random.pick([0n, COPIED, COPIED, COMPRESSED, COPIED | 1n, 1n]);
  const offset = random.pick([
    random.below(length / 512) * 512,
    random.below(length / 512) * 512,
    random.below(2 ** 50),
    0,
  ]);
  return flags | BigInt(offset);
}

/** Does this and that with the disk of an image: only errors of ours may come of it. */
function scribble(files: DiskFiles, random: Random): void {
  const attempt = <T>(action: () => T): T | undefined => {
    try {
      return action();
    } catch (error) {
      if (error instanceof TsimgfsError) return undefined;
      throw error;
    }
  };
  const disk = attempt(() => files.open(NAME, { policy: { growable: true } }));
  if (disk === undefined) return;
  for (let step = 0; step < 12; step++) {
    const size = disk.disk.currentSize();
    const offset = random.below(size);
    const length = random.between(1, Math.min(size - offset, 30_000));
    attempt(() => {
      switch (random.below(8)) {
        case 0:
          disk.disk.writeZeroes(offset, length, { unmap: random.below(2) === 0 });
          break;
        case 1:
          disk.disk.preallocate(offset, length);
          break;
        case 2:
          disk.disk.flush();
          disk.disk.maintain();
          break;
        case 3:
          if (step > 8) disk.disk.resize(random.between(512, 300_000));
          break;
        case 4:
          disk.read(offset, length);
          break;
        default:
          disk.fill(offset, length, random.below(3));
      }
    });
  }
  attempt(() => disk.close());
}
