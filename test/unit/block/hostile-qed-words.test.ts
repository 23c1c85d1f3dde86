/** QED images with random words in their tables and headers: they are refused as they are, or stay sound. */

import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import { qemuCheck } from "../../support/check-oracle.ts";
import { buildQed, type QedHeaderField, type QedImage } from "../../support/qed-builder.ts";
import { Random } from "../../support/random.ts";
import { byScale } from "../../support/scale.ts";
import { type DiskFiles, type WritableDisk, withDiskFiles } from "./writable-disk.ts";

const NAME = "disk.qed";
const CLUSTER = 4096;
/** Entries of a table. */
const ENTRIES = 1024;

/** Two L2 tables, a little data, zeros, and a cluster that nothing refers to. */
function smallImage(): QedImage {
  const data = { kind: "data", bytes: Buffer.alloc(CLUSTER, 0x5a) } as const;
  const zero = { kind: "zero" } as const;
  return buildQed({
    clusterSize: CLUSTER,
    tableClusters: 2,
    virtualSize: (ENTRIES + 20) * CLUSTER,
    clusters: { 0: data, 1: data, 2: zero, 5: data, 9: data, [ENTRIES + 3]: data },
  }).setL2(5, 0);
}

const HEADER_FIELDS = [
  ...(["header_size", "features", "compat_features"] as const),
  ...(["autoclear_features", "l1_table_offset", "image_size"] as const),
] as const satisfies readonly QedHeaderField[];

/** A word that a table may have: a place in the file, or beside one. */
function randomWord(random: Random, length: number): bigint {
  const cluster = BigInt(random.below(length / CLUSTER + 2) * CLUSTER);
  return random.pick([
    cluster,
    cluster,
    cluster,
    cluster + 512n,
    1n,
    BigInt(random.below(2 ** 50)),
    BigInt(random.u32()) << 32n,
  ]);
}

function damage(random: Random): Buffer {
  const image = smallImage();
  const { length } = image.bytes;
  for (let count = random.below(3); count > 0; count--) {
    const { offset } = image.region(random.pick(["l1", "l2 0", "l2 1"]));
    image.setU64(offset + random.below(12) * 8, randomWord(random, length));
  }
  if (random.below(3) === 0) {
    const value = random.pick([0n, 1n, 2n, 2n, 4n, BigInt(CLUSTER), randomWord(random, length)]);
    image.setHeader(random.pick(HEADER_FIELDS), value);
  }
  const more = random.pick([0, 0, 0, 700, 3 * CLUSTER, -CLUSTER, -100]);
  return more < 0
    ? image.truncated(length + more)
    : Buffer.concat([image.bytes, Buffer.alloc(more, 0xee)]);
}

function attempt<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    if (error instanceof TsimgfsError) return undefined;
    throw error;
  }
}

/** Does this and that with a disk: nothing of it may fail, but for a size that it cannot have. */
function scribble({ disk, ...sample }: ScribbledDisk, random: Random): void {
  for (let step = 0; step < 12; step++) {
    const size = disk.disk.currentSize();
    if (size === 0) return;
    const near = random.pick([0, ENTRIES * CLUSTER, size]);
    const offset = Math.min(Math.max(0, near + random.between(-50_000, 50_000)), size - 1);
    const length = random.between(1, Math.min(size - offset, 30_000));
    sample.note(`${step}: ${offset}+${length}`);
    switch (random.below(7)) {
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
        attempt(() => disk.disk.resize(size + random.below(300_000)));
        break;
      default:
        disk.fill(offset, length, random.below(3));
    }
  }
}

interface ScribbledDisk {
  readonly disk: WritableDisk;
  readonly note: (step: string) => void;
}

async function corruptionsOf(files: DiskFiles): Promise<number | undefined> {
  const { counts } = await qemuCheck(files.path(NAME), "qed");
  return counts && counts.corruptions + counts.checkErrors;
}

describe("QED images with random words in them", () => {
  it("are refused as they are, or written to without harm", async () => {
    const random = new Random("hostile QED words");
    let opened = 0;
    let refused = 0;
    await withDiskFiles(async (files) => {
      for (let round = 0; round < byScale(120, 5000); round++) {
        const bytes = damage(random);
        files.put(NAME, bytes);
        const needsCheck = (bytes.readUInt8(16) & 2) !== 0;
        const disk = attempt(() => files.open(NAME, { policy: { growable: true } }));
        if (disk === undefined) {
          refused++;
          // A repair may have been begun.
          if (!needsCheck) expect(files.bytes(NAME).equals(bytes), `round ${round}`).toBe(true);
          continue;
        }
        opened++;
        const steps: string[] = [];
        try {
          scribble({ disk, note: (step) => steps.push(step) }, random);
        } finally {
          disk.close();
        }
        // Of some headers QEMU thinks otherwise than we: then it says nothing.
        const corruptions = await corruptionsOf(files);
        expect(corruptions ?? 0, `round ${round}: ${steps.join(", ")}`).toBe(0);
      }
    });
    expect(Math.min(opened, refused)).toBeGreaterThan(byScale(20, 500));
  }, 600_000);
});
