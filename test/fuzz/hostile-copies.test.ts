// Copy-on-read into damaged overlays, and from damaged backing files: what can be read stays as it is, and the rest is EIO.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type DamagedImage, damagedQcow2, damagedQed } from "../support/damaged-tables.ts";
import { expectHealthyDaemon, outcomeByMount, readThroughCache } from "../support/hostile-mount.ts";
import { outcomeByQemu } from "../support/hostile-oracle.ts";
import { disagreement, type Outcome } from "../support/hostile-outcome.ts";
import { qcow2Sample, qedSample, SAMPLE_CLUSTERS } from "../support/hostile-samples.ts";
import { startMount } from "../support/mounted.ts";
import { Random } from "../support/random.ts";
import { withScratch } from "../support/scratch.ts";
import { expectOrdered } from "../support/write-images.ts";

const BASE = { backingFile: "base.raw", backingFormat: "raw" } as const;
/** Of the samples, bytes. */
const LARGEST_CLUSTER = 16384;

type Format = "qcow2" | "qed";

const formatOf = (path: string): Format => (path.endsWith(".qed") ? "qed" : "qcow2");

/** What a mount reads, twice, is what qemu-img read before. */
async function readTwice(images: ReadonlyMap<string, Outcome>): Promise<void> {
  const mount = await startMount([...images.keys()]);
  try {
    // All at once first: I/O threads share the tables and the copies.
    await Promise.all([...images.keys()].map((image) => readThroughCache(mount.device(image))));
    for (let turn = 1; turn <= 2; turn++) {
      for (const [image, before] of images) {
        const ours = await outcomeByMount(mount.device(image));
        expect(disagreement(ours, before, "anything"), `${image}, turn ${turn}`).toBeUndefined();
      }
    }
    expectHealthyDaemon(mount);
  } finally {
    await mount.stop().catch((error: unknown) => {
      // Damage may be found only when copies are linked, or space is given back: then that is told.
      expect(String(error)).toMatch(/unmounted, but not all that was written/);
      expect(String(error)).not.toMatch(/was killed|unmounted lazily|waited .* in vain/);
    });
  }
}

/** Damaged overlays in a directory; all of the disk that they lack is in base.raw. */
async function writeOverlays(
  directory: string,
  damaged: readonly DamagedImage[],
): Promise<Map<string, Outcome>> {
  const bytes = new Random("copies").bytes(SAMPLE_CLUSTERS * LARGEST_CLUSTER);
  writeFileSync(join(directory, "base.raw"), bytes);
  const images = new Map<string, Outcome>();
  for (const [name, image] of damaged) {
    const path = join(directory, name.replace(/\.(\w+)$/, "-$1.$1"));
    writeFileSync(path, image);
    images.set(path, await outcomeByQemu(path, formatOf(path)));
  }
  return images;
}

/** Good overlays in a directory, one over each damaged backing file. */
async function writeOverDamaged(
  directory: string,
  damaged: readonly DamagedImage[],
): Promise<Map<string, Outcome>> {
  const images = new Map<string, Outcome>();
  for (const [index, [name, image]] of damaged.entries()) {
    const backingFile = `base-${name}`;
    writeFileSync(join(directory, backingFile), image);
    const format = index % 4 === 3 ? "qed" : "qcow2";
    const path = join(directory, `over-${index}.${format}`);
    if (format === "qed") qedSample({ backingFile }).write(path);
    else qcow2Sample("version 3", { backingFile, backingFormat: formatOf(name) }).write(path);
    images.set(path, await outcomeByQemu(path, format));
  }
  return images;
}

describe("copy-on-read", () => {
  // QED images that are damaged so are not opened to be written to.
  it("changes nothing of what damaged overlays show", async () => {
    await withScratch("hostile-copies", async (directory) => {
      const images = await writeOverlays(directory, damagedQcow2(BASE));
      await readTwice(images);
      for (const [path, before] of images) {
        const after = await outcomeByQemu(path, formatOf(path));
        expect(disagreement(after, before, "same"), `${path} afterwards`).toBeUndefined();
      }
    });
  });

  it("takes from damaged backing files what can be read of them", async () => {
    await withScratch("hostile-copies", async (directory) => {
      const images = await writeOverDamaged(directory, [...damagedQcow2(), ...damagedQed()]);
      await readTwice(images);
      for (const [path, before] of images) {
        await expectOrdered(path, formatOf(path));
        const after = await outcomeByQemu(path, formatOf(path));
        expect(disagreement(after, before, "same"), `${path} afterwards`).toBeUndefined();
      }
    });
  });
});
