// Copy-on-read with random damage: in the backing file, whose overlay stays sound, and in the overlay.

import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../src/errors.ts";
import { qemuCheck } from "../support/check-oracle.ts";
import { mutate } from "../support/hostile-mutator.ts";
import { sampledRanges } from "../support/hostile-ranges.ts";
import {
  QCOW2_SAMPLES,
  qcow2Sample,
  qedSample,
  SAMPLE_CLUSTERS,
} from "../support/hostile-samples.ts";
import { Random } from "../support/random.ts";
import { byScale } from "../support/scale.ts";
import { readDisk, type WritableDisk, withDiskFiles } from "../unit/block/writable-disk.ts";
import { expectBytes } from "../unit/expect-bytes.ts";

const ROUNDS = byScale(25, 2000);
const PIECE = 5000;

/** Calls an action that may fail for a reason that is told; everything else is a fault of ours. */
function toleratingErrors(action: () => void): void {
  try {
    action();
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
  }
}

/** Reads much of a disk twice; what was read once must be read again. */
function readTwice({ disk }: WritableDisk): void {
  const shown = new Map<number, Buffer>();
  for (let turn = 0; turn < 2; turn++) {
    for (const { offset, length } of sampledRanges(disk.virtualSize)) {
      for (let at = offset; at < offset + length; at += PIECE) {
        const count = Math.min(PIECE, offset + length - at);
        toleratingErrors(() => {
          const bytes = readDisk(disk, at, count);
          const before = shown.get(at);
          if (before !== undefined) expectBytes(bytes, before, `${at}+${count} read again`);
          shown.set(at, bytes);
        });
      }
    }
    toleratingErrors(() => disk.flush());
  }
}

describe("copy-on-read over a backing file with random damage", () => {
  it.each([...QCOW2_SAMPLES, "QED"] as const)("leaves the overlay sound: %s", async (name) => {
    const random = new Random(`damaged backing files ${name}`);
    const isQed = name === "QED";
    for (let round = 0; round < ROUNDS; round++) {
      await withDiskFiles(async (files) => {
        const good = isQed ? qedSample() : qcow2Sample(name);
        const { bytes, changes } = mutate(good.bytes, random);
        const backingFile = isQed ? "base.qed" : "base.qcow2";
        files.put(backingFile, bytes);
        const over = { backingFile, backingFormat: isQed ? "qed" : "qcow2" } as const;
        files.put("disk.qcow2", qcow2Sample("version 3", over).bytes);
        let isOpen = false;
        try {
          toleratingErrors(() =>
            files.use("disk.qcow2", (disk) => {
              isOpen = true;
              readTwice(disk);
            }),
          );
          if (isOpen) await files.expectClean("disk.qcow2");
        } catch (error) {
          throw new Error(`${changes.join(", ")}: ${String(error)}`, { cause: error });
        }
        expect(files.bytes(backingFile).equals(bytes), "the backing file").toBe(true);
      });
    }
  });
});

describe("copy-on-read into an overlay with random damage", () => {
  it.each([...QCOW2_SAMPLES, "QED"] as const)("fails in a way that is told: %s", async (name) => {
    const random = new Random(`damaged overlays ${name}`);
    const over = { backingFile: "base.raw", backingFormat: "raw" } as const;
    const good = name === "QED" ? qedSample(over) : qcow2Sample(name, over);
    const file = name === "QED" ? "disk.qed" : "disk.qcow2";
    for (let round = 0; round < 2 * ROUNDS; round++) {
      await withDiskFiles(async (files) => {
        const base = random.bytes(SAMPLE_CLUSTERS * 4096 + 100);
        files.put("base.raw", base);
        const { bytes, changes } = mutate(good.bytes, random);
        files.put(file, bytes);
        try {
          toleratingErrors(() => files.use(file, readTwice));
        } catch (error) {
          // Where data lies on tables, it changes when they do.
          files.put(`damaged-${file}`, bytes);
          const { counts } = await qemuCheck(
            files.path(`damaged-${file}`),
            name === "QED" ? "qed" : "qcow2",
          );
          const isWrong = error instanceof Error && error.name === "AssertionError";
          const isTorn = isWrong && (counts?.corruptions ?? 0) > 0;
          if (!isTorn) throw new Error(`${changes.join(", ")}: ${String(error)}`, { cause: error });
        }
        expect(files.bytes("base.raw").equals(base), "the backing file").toBe(true);
      });
    }
  });
});
