/** Pictures of images with random words in them: one clear refusal, or maps whose sums are right. */

import { describe, expect, it } from "vitest";
import { BackingChain } from "../../../src/block/backing-chain.ts";
import { CELL_CLASSES, type PictureCells } from "../../../src/block/picture-cells.ts";
import { type PictureMap, readPictureMap } from "../../../src/block/picture-map.ts";
import { TsimgfsError } from "../../../src/errors.ts";
import type { FormatImage } from "../../../src/formats/driver.ts";
import { QCOW2_SAMPLES, qcow2Sample, qedSample } from "../../support/hostile-samples.ts";
import { buildQcow2 } from "../../support/qcow2-builder.ts";
import { Random } from "../../support/random.ts";
import { openQcow2, openQed } from "../formats/open-image.ts";

const ROUNDS = 150;

function mapOrRefusal(open: () => FormatImage): PictureMap | undefined {
  try {
    return readPictureMap(new BackingChain([open()]), 512);
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    expect(error.message).toMatch(/^disk\.(qcow2|qed): [^\n]+$/);
    return undefined;
  }
}

function expectSums(cells: PictureCells): void {
  const sums = CELL_CLASSES.map((cellClass) => cells.sum(cellClass));
  expect(sums.reduce((a, b) => a + b)).toBe(cells.length);
}

/** A copy with a few words of its tables replaced: by small numbers, offsets in the file, or anything. */
function mutated(bytes: Buffer, random: Random, tables: readonly { offset: number }[]): Buffer {
  const copy = Buffer.from(bytes);
  for (let count = random.between(1, 4); count > 0; count--) {
    const { offset } = tables[random.below(tables.length)] ?? { offset: 0 };
    const word = [
      BigInt(random.below(16)),
      BigInt(random.below(bytes.length / 512 + 20) * 512),
      (BigInt(random.u32()) << 32n) | BigInt(random.u32()),
    ][random.below(3)];
    const at = offset + random.below(20) * 8;
    if (at + 8 <= copy.length) copy.writeBigUInt64BE(word ?? 0n, at);
  }
  return random.below(5) === 0 ? copy.subarray(0, random.below(copy.length)) : copy;
}

describe("pictures of hostile images", () => {
  it.each(QCOW2_SAMPLES)("qcow2, %s", (name) => {
    const random = new Random(`hostile pictures ${name}`);
    const sample = qcow2Sample(name);
    const tables = sample.regions.filter((region) => !/^(data|compressed)/.test(region.name));
    let drawn = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(sample.bytes, random, tables);
      const map = mapOrRefusal(() => openQcow2(bytes));
      if (map === undefined) continue;
      drawn++;
      expectSums(map.disk);
      expectSums(map.file);
    }
    expect(drawn).toBeGreaterThan(0);
  });

  it("QED", () => {
    const random = new Random("hostile pictures of QED");
    const sample = qedSample();
    const tables = sample.regions.filter((region) => !/^data/.test(region.name));
    let drawn = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(sample.bytes, random, tables);
      const map = mapOrRefusal(() => openQed(bytes));
      if (map === undefined) continue;
      drawn++;
      expectSums(map.disk);
      expectSums(map.file);
    }
    expect(drawn).toBeGreaterThan(0);
  });

  it("counts a cluster of the file once, however many entries name it", () => {
    const sample = qcow2Sample();
    for (let cluster = 0; cluster < 16; cluster++) sample.setL2(cluster, sample.getL2(0));
    const map = mapOrRefusal(() => openQcow2(sample.bytes));
    expect(map?.disk.sum("data")).toBe(16 * sample.clusterSize);
    expect(map?.file.sum("data")).toBe(sample.clusterSize);
  });

  it("ends where tables are named again and again", () => {
    const tables = 1000;
    const zero = { kind: "zero" } as const;
    const clusters = Object.fromEntries(
      Array.from({ length: 32 }, (_, index) => [index * 2, zero]),
    );
    const sample = buildQcow2({ clusterBits: 9, virtualSize: tables * 64 * 512, clusters });
    expect(mapOrRefusal(() => openQcow2(sample.bytes))?.disk.sum("zero")).toBe(32 * 512);
    const entry = sample.getU64(sample.l1EntryOffset(0));
    for (let index = 0; index < tables; index++) sample.setL1(index, entry);
    const open = () => readPictureMap(new BackingChain([openQcow2(sample.bytes)]), 512);
    expect(open).toThrow(/^disk\.qcow2: has more than \d+ extents, too many for a picture$/);
  });

  it("has metadata where data lies over it", () => {
    const sample = qcow2Sample();
    sample.setL2(0, BigInt(sample.region("l1").offset) | (1n << 63n));
    const map = mapOrRefusal(() => openQcow2(sample.bytes));
    const cell = sample.region("l1").offset / sample.clusterSize;
    expect(map?.file.bytesAt(cell, "metadata")).toBe(sample.clusterSize);
  });
});
