/** Changes of the QED header, looked at byte by byte: what is not meant stays, known or not. */

import { describe, expect, it } from "vitest";
import { HeaderWriter } from "../../../../../src/formats/qed/writer/header-writer.ts";
import { qedBytes } from "../../../../support/qed-builder.ts";
import { Random } from "../../../../support/random.ts";
import { SparseFile } from "../../../../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../../../../support/recording-storage.ts";

interface Sample {
  readonly storage: RecordingStorage;
  readonly log: RecordingLog;
  readonly writer: HeaderWriter;
}

/** A header with something in every byte that no table explains. */
function strangeImage(features: bigint, autoclear: bigint): Sample {
  const content = SparseFile.empty();
  const header = { features, compat_features: -1, autoclear_features: autoclear };
  content.write(0, qedBytes({ clusterSize: 4096, tableClusters: 1, header }));
  content.write(64, new Random("strange QED header").bytes(4032));
  const log: RecordingLog = { operations: [] };
  const storage = new RecordingStorage("disk.qed", content, log, 0);
  return { storage, log, writer: new HeaderWriter(storage) };
}

/** Changes an image, and gives the bytes that differ afterwards: offset and value. */
function changesOf({ storage }: Sample, change: () => void): (readonly [number, number])[] {
  const before = storage.content.bytesAt(0, storage.content.length);
  change();
  const after = storage.content.bytesAt(0, storage.content.length);
  expect(after.length).toBe(before.length);
  return [...after.entries()].filter(([at, value]) => before[at] !== value);
}

describe("HeaderWriter.setNeedCheck", () => {
  it.each([0n, 1n, 5n, 0x8000_0000_0000_0001n])("sets and clears one bit of %s", (features) => {
    const sample = strangeImage(features, 0n);
    const { writer, log } = sample;
    const low = Number(features & 0xffn);
    expect(changesOf(sample, () => writer.setNeedCheck(true))).toEqual([[16, low | 2]]);
    expect(changesOf(sample, () => writer.setNeedCheck(true))).toEqual([]);
    expect(changesOf(sample, () => writer.setNeedCheck(false))).toEqual([[16, low]]);
    expect(changesOf(sample, () => writer.setNeedCheck(false))).toEqual([]);
    for (const operation of log.operations) {
      expect(operation).toMatchObject({ kind: "write", offset: 16, data: { length: 8 } });
    }
  });

  it("sees what was written to the header meanwhile", () => {
    const { storage, writer } = strangeImage(0n, 0n);
    writer.setNeedCheck(true);
    storage.content.write(16, Buffer.of(7));
    writer.setNeedCheck(false);
    expect(storage.content.bytesAt(16, 8).readBigUInt64LE()).toBe(5n);
  });
});

describe("HeaderWriter.clearAutoclear", () => {
  it.each([1n, 1n << 63n, 0xffff_ffff_ffff_ffffn])("clears all bits of %s, once", (autoclear) => {
    const sample = strangeImage(3n, autoclear);
    const { storage, log, writer } = sample;
    let wasSet: boolean | undefined;
    const changes = changesOf(sample, () => {
      wasSet = writer.clearAutoclear();
    });
    expect(wasSet).toBe(true);
    expect(changes.every(([at, value]) => at >= 32 && at < 40 && value === 0)).toBe(true);
    expect(storage.content.bytesAt(32, 8).readBigUInt64LE()).toBe(0n);
    expect(writer.clearAutoclear()).toBe(false);
    expect(log.operations).toHaveLength(1);
  });

  it("writes nothing where there is none", () => {
    const { log, writer } = strangeImage(1n, 0n);
    expect(writer.clearAutoclear()).toBe(false);
    expect(log.operations).toEqual([]);
  });
});

describe("HeaderWriter.setVirtualSize", () => {
  it.each([
    { size: 512, hex: "0002000000000000" },
    { size: 2 ** 32 + 0x1200, hex: "0012000001000000" },
    { size: 2 ** 53 - 512, hex: "00feffffffff1f00" },
  ])("writes $size in one go", ({ size, hex }) => {
    const sample = strangeImage(1n, 0n);
    const changes = changesOf(sample, () => sample.writer.setVirtualSize(size));
    expect(changes.every(([at]) => at >= 48 && at < 56)).toBe(true);
    expect(sample.storage.content.bytesAt(48, 8).toString("hex")).toBe(hex);
    expect(sample.log.operations).toHaveLength(1);
  });
});
