/** Changes of the header, looked at byte by byte: what is not meant stays, known or not. */

import { describe, expect, it } from "vitest";
import { HeaderWriter } from "../../../../../src/formats/qcow2/writer/header-writer.ts";
import { Random } from "../../../../support/random.ts";
import { type WriterState, writerState } from "./writer-state.ts";

/** A header with something in every byte that no table explains. */
function strangeImage(version: 2 | 3): WriterState {
  const sample = writerState({
    version,
    headerLength: 144,
    extensions: [{ type: 0x1234_5678, data: new Random("extension").bytes(100) }],
  });
  if (version === 3) {
    sample.storage.content.write(112, new Random("unknown fields").bytes(32));
  }
  return sample;
}

/** Changes an image, and gives the bytes that differ afterwards: offset and value. */
function changesOf(
  { storage }: WriterState,
  change: () => void,
): readonly (readonly [offset: number, value: number])[] {
  const before = storage.content.bytesAt(0, storage.content.length);
  change();
  const after = storage.content.bytesAt(0, storage.content.length);
  expect(after.length).toBe(before.length);
  return [...after.entries()].filter(([at, value]) => before[at] !== value);
}

function setU64(sample: WriterState, offset: number, value: bigint): void {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  sample.storage.content.write(offset, bytes);
}

const u64 = (sample: WriterState, offset: number): bigint =>
  sample.storage.content.bytesAt(offset, 8).readBigUInt64BE();

const INCOMPATIBLE = 72;
const COMPATIBLE = 80;
const AUTOCLEAR = 88;
/** The bit of raw external data. */
const RAW_DATA = 2n;

describe("HeaderWriter.setIncompatible", () => {
  it.each([
    { bit: "dirty", mask: 1n },
    { bit: "corrupt", mask: 2n },
  ] as const)("sets and clears the $bit bit, and nothing else", ({ bit, mask }) => {
    const sample = strangeImage(3);
    setU64(sample, INCOMPATIBLE, 0x8123_4567_89ab_cd08n);
    setU64(sample, COMPATIBLE, 0xffff_ffff_ffff_ffffn);
    setU64(sample, AUTOCLEAR, 0xfedc_ba98_7654_3210n);
    const writer = new HeaderWriter(sample.storage, 3);
    expect(changesOf(sample, () => writer.setIncompatible(bit, true))).toEqual([
      [INCOMPATIBLE + 7, 0x08 | Number(mask)],
    ]);
    expect(changesOf(sample, () => writer.setIncompatible(bit, true))).toEqual([]);
    expect(u64(sample, INCOMPATIBLE)).toBe(0x8123_4567_89ab_cd08n | mask);
    expect(changesOf(sample, () => writer.setIncompatible(bit, false))).toEqual([
      [INCOMPATIBLE + 7, 0x08],
    ]);
    expect(changesOf(sample, () => writer.setIncompatible(bit, false))).toEqual([]);
  });

  it("keeps one bit when the other changes", () => {
    const sample = strangeImage(3);
    const writer = new HeaderWriter(sample.storage, 3);
    writer.setIncompatible("dirty", true);
    writer.setIncompatible("corrupt", true);
    expect(u64(sample, INCOMPATIBLE)).toBe(3n);
    writer.setIncompatible("dirty", false);
    expect(u64(sample, INCOMPATIBLE)).toBe(2n);
  });

  it("sees what was written to the header meanwhile", () => {
    const sample = strangeImage(3);
    const writer = new HeaderWriter(sample.storage, 3);
    writer.setIncompatible("dirty", true);
    setU64(sample, COMPATIBLE, 0x55n);
    writer.setIncompatible("dirty", false);
    expect(u64(sample, COMPATIBLE)).toBe(0x55n);
  });

  it("leaves version 2 alone, which has no such field", () => {
    const sample = strangeImage(2);
    const writer = new HeaderWriter(sample.storage, 2);
    const change = (): void => {
      writer.setIncompatible("dirty", true);
      writer.setIncompatible("corrupt", true);
      expect(writer.clearAutoclear(RAW_DATA)).toBe(false);
    };
    expect(changesOf(sample, change)).toEqual([]);
    expect(sample.log.operations).toEqual([]);
  });
});

describe("HeaderWriter.clearAutoclear", () => {
  it.each([
    { before: 0n, after: 0n, cleared: false },
    // What is to be kept stays.
    { before: 2n, after: 2n, cleared: false },
    { before: 1n, after: 0n, cleared: true },
    { before: 3n, after: 2n, cleared: true },
    { before: 4n, after: 0n, cleared: true },
    { before: 0xffff_ffff_ffff_ffffn, after: 2n, cleared: true },
    { before: 1n << 63n, after: 0n, cleared: true },
  ])("makes $after of $before", ({ before, after, cleared }) => {
    const sample = strangeImage(3);
    setU64(sample, INCOMPATIBLE, 0x1122_3344_5566_7788n);
    setU64(sample, COMPATIBLE, 0x99aa_bbcc_ddee_ff00n);
    setU64(sample, AUTOCLEAR, before);
    const writer = new HeaderWriter(sample.storage, 3);
    let result: boolean | undefined;
    const changes = changesOf(sample, () => {
      result = writer.clearAutoclear(RAW_DATA);
    });
    expect(result).toBe(cleared);
    expect(changes.every(([at]) => at >= AUTOCLEAR && at < AUTOCLEAR + 8)).toBe(true);
    expect(u64(sample, AUTOCLEAR)).toBe(after);
    expect(sample.log.operations).toHaveLength(cleared ? 1 : 0);
    expect(writer.clearAutoclear(RAW_DATA)).toBe(false);
  });
});

describe("HeaderWriter, places of tables", () => {
  it.each([2, 3] as const)(
    "writes fields that belong together in one go (version %i)",
    (version) => {
      const sample = strangeImage(version);
      const writer = new HeaderWriter(sample.storage, version);
      const inOneGo = (change: () => void, start: number, hex: string): void => {
        const before = sample.log.operations.length;
        changesOf(sample, change).forEach(([at]) => {
          expect(at).toBeGreaterThanOrEqual(start);
          expect(at).toBeLessThan(start + hex.length / 2);
        });
        const length = hex.length / 2;
        expect(sample.storage.content.bytesAt(start, length).toString("hex")).toBe(hex);
        expect(sample.log.operations.slice(before)).toMatchObject([
          { kind: "write", offset: start },
        ]);
      };
      inOneGo(
        () => writer.setRefcountTable(0x12_3456_0000, 0x0708),
        48,
        "0000001234560000" + "00000708",
      );
      inOneGo(
        () => writer.setL1Table(0x1_0000_0000, 0x40_0000),
        36,
        "00400000" + "0000000100000000",
      );
      inOneGo(() => writer.setVirtualSize(0x1f_ffff_ffff_fe00), 24, "001ffffffffffe00");
    },
  );
});
