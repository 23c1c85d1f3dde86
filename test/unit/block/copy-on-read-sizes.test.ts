/** Copy-on-read of disks whose size changes, over backing files that are shorter and longer. */

import { describe, expect, it } from "vitest";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { expectBytes } from "../expect-bytes.ts";
import { OVERLAY_KINDS, putOverlay, spoilBacking } from "./overlays.ts";
import { readDisk, withDiskFiles } from "./writable-disk.ts";

const SECTOR = 512;

const KINDS = OVERLAY_KINDS.filter(
  ({ clusterBits, options }) =>
    // Version 2 does not say how large the disk of a snapshot is.
    clusterBits <= 14 && !(options?.version === 2 && options.snapshots !== undefined),
);

describe.each(KINDS)("a disk that is read while its size changes: $name", (kind) => {
  it.each([
    { what: "a shorter backing file", backing: "D0DDD0D" },
    { what: "a longer backing file", backing: "DD0DD0DDDDD0D0DDDDDD0DDDDDDDDDDD" },
  ])("shows what it should, over $what", async ({ backing }) => {
    const clusterSize = 2 ** kind.clusterBits;
    const clusters = "...D......D.....";
    await withDiskFiles(async (files) => {
      const random = new Random(`sizes ${kind.name} ${backing}`);
      const size = clusters.length * clusterSize - SECTOR;
      let content = putOverlay(files, kind, { clusters, backing, virtualSize: size });
      files.use(
        kind.file,
        (one) => {
          const disks = [one.disk, one.asOtherThread()];
          for (let turn = 0; turn < byScale(60, 600); turn++) {
            const disk = disks[turn % 2] ?? one.disk;
            const offset = random.below(content.length);
            const length = random.between(1, Math.min(content.length - offset, 3 * clusterSize));
            const wanted = content.subarray(offset, offset + length);
            expectBytes(readDisk(disk, offset, length), wanted, `turn ${turn}`);
            if (random.below(3) > 0) continue;
            // QED disks do not shrink.
            const least = kind.file === "disk.qed" ? content.length / SECTOR : 1;
            const sectors = random.between(least, (content.length + 2 * clusterSize) / SECTOR);
            disks[random.below(2)]?.resize(sectors * SECTOR);
            const resized = Buffer.alloc(sectors * SECTOR);
            content.copy(resized);
            content = resized;
          }
          expectBytes(one.read(), content, "in the end");
        },
        { policy: { growable: true } },
      );
      if (kind.file === "disk.qed") await files.check(kind.file);
      else await files.expectClean(kind.file);
      spoilBacking(files);
      const shown = await files.converted(kind.file);
      expect(shown.length).toBe(content.length);
      expectBytes(shown, content, "over another backing file");
    });
  });
});
