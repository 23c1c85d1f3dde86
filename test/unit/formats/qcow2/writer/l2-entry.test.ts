/** L2 entries taken apart and put together, against entries that are laid out with BigInt. */

import { describe, expect, it } from "vitest";
import {
  type EntryFormat,
  encodeEntry,
  L2Entry,
} from "../../../../../src/formats/qcow2/writer/l2-entry.ts";
import { Random } from "../../../../support/random.ts";

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const ZERO = 1n;
const ALL = 0xffff_ffff;

const USUAL: EntryFormat = {
  extended: false,
  version: 3,
  clusterBits: 16,
  clusterSize: 65536,
  hasDataFile: false,
};
const EXTENDED: EntryFormat = { ...USUAL, extended: true };
const DATA_FILE: EntryFormat = { ...USUAL, hasDataFile: true };

/** What an entry says, unsigned. */
interface Said {
  readonly hasCluster: boolean;
  readonly host: number;
  readonly copied: boolean;
  readonly compressed: boolean;
  readonly compressedBytes: number;
  readonly zeroBits: number;
  readonly dataBits: number;
  readonly fault: string | undefined;
  readonly isUnallocated: boolean;
}

function decode(format: EntryFormat, word: bigint, bitmap = 0n, guestCluster = 0): Said {
  const entry = new L2Entry(format);
  // What another entry left behind must not show.
  entry.decode(0xffff_ffff, 0xffff_ffff, 5, 6, 7);
  const half = (value: bigint, shift: bigint): number => Number((value >> shift) & 0xffff_ffffn);
  entry.decode(half(word, 32n), half(word, 0n), half(bitmap, 32n), half(bitmap, 0n), guestCluster);
  return {
    hasCluster: entry.hasCluster,
    host: entry.host,
    copied: entry.copied,
    compressed: entry.compressed,
    compressedBytes: entry.compressedBytes,
    zeroBits: entry.zeroBits >>> 0,
    dataBits: entry.dataBits >>> 0,
    fault: entry.fault,
    isUnallocated: entry.isUnallocated,
  };
}

const NOTHING: Said = {
  hasCluster: false,
  host: -1,
  copied: false,
  compressed: false,
  compressedBytes: 0,
  zeroBits: 0,
  dataBits: 0,
  fault: undefined,
  isUnallocated: true,
};

describe("L2Entry, standard", () => {
  it.each<{ what: string; word: bigint; said: Partial<Said> }>([
    { what: "nothing", word: 0n, said: {} },
    {
      what: "data of its own",
      word: COPIED | 0x50000n,
      said: { hasCluster: true, host: 0x50000, copied: true, dataBits: ALL, isUnallocated: false },
    },
    {
      what: "shared data",
      word: 0x50000n,
      said: { hasCluster: true, host: 0x50000, dataBits: ALL, isUnallocated: false },
    },
    { what: "zeros", word: ZERO, said: { zeroBits: ALL, isUnallocated: false } },
    {
      what: "zeros with a place",
      word: COPIED | 0x50000n | ZERO,
      said: { hasCluster: true, host: 0x50000, copied: true, zeroBits: ALL, isUnallocated: false },
    },
    {
      what: "data beyond 4 GiB",
      word: COPIED | 0x12_3456_0000n,
      said: {
        hasCluster: true,
        host: 0x12_3456_0000,
        copied: true,
        dataBits: ALL,
        isUnallocated: false,
      },
    },
    {
      what: "data with reserved bits",
      word: COPIED | 0x50000n | 0x3f00_0000_0000_01fen,
      said: { hasCluster: true, host: 0x50000, copied: true, dataBits: ALL, isUnallocated: false },
    },
    { what: "nothing that is COPIED", word: COPIED, said: { copied: true } },
  ])("decodes $what", ({ word, said }) => {
    expect(decode(USUAL, word)).toEqual({ ...NOTHING, ...said });
  });

  it("takes a compressed descriptor apart: offset, and sectors after the first", () => {
    // 64 KiB clusters: 54 bits of offset, then the sectors.
    const word = COMPRESSED | (5n << 54n) | 0x12_3456_7a9bn;
    expect(decode(USUAL, word)).toEqual({
      ...NOTHING,
      compressed: true,
      host: 0x12_3456_7a9b,
      compressedBytes: 6 * 512 - (0x7a9b % 512),
      isUnallocated: false,
    });
  });

  it.each<{ what: string; format: EntryFormat; word: bigint; fault: RegExp }>([
    {
      what: "an offset that is not aligned",
      format: USUAL,
      word: COPIED | 0x50200n,
      fault: /not a multiple of the cluster size/,
    },
    {
      what: "an offset above 2^53",
      format: USUAL,
      word: COPIED | (1n << 54n),
      fault: /above the limit of 2\^53 - 1/,
    },
    {
      what: "a zero cluster in version 2",
      format: { ...USUAL, version: 2 },
      word: ZERO,
      fault: /a zero cluster in a version 2 image/,
    },
    {
      what: "a compressed cluster with a data file",
      format: DATA_FILE,
      word: COMPRESSED | 0x50000n,
      fault: /compressed, with an external data file/,
    },
    {
      what: "a compressed cluster above 2^53",
      format: USUAL,
      word: COMPRESSED | (1n << 53n),
      fault: /above the limit of 2\^53 - 1/,
    },
    {
      what: "another place in a data file",
      format: DATA_FILE,
      word: COPIED | 0x50000n,
      fault: /differs from the guest offset/,
    },
  ])("finds $what", ({ format, word, fault }) => {
    expect(decode(format, word).fault).toMatch(fault);
  });

  it("has a cluster at offset 0 of a data file only where it is COPIED", () => {
    expect(decode(DATA_FILE, COPIED)).toMatchObject({ hasCluster: true, host: 0, dataBits: ALL });
    expect(decode(DATA_FILE, 0n)).toEqual(NOTHING);
    expect(decode(DATA_FILE, COPIED, 0n, 65536).fault).toMatch(/differs from the guest offset/);
    expect(decode(DATA_FILE, COPIED | 0x20000n, 0n, 0x20000)).toMatchObject({
      hasCluster: true,
      fault: undefined,
    });
  });
});

describe("L2Entry, extended", () => {
  it("gives the bits of the second word: data below, zeros above", () => {
    expect(decode(EXTENDED, COPIED | 0x50000n, 0x8000_0001_0000_fff0n)).toMatchObject({
      hasCluster: true,
      zeroBits: 0x8000_0001,
      dataBits: 0xfff0,
      fault: undefined,
    });
    expect(decode(EXTENDED, 0n, 0xffff_ffff_0000_0000n)).toMatchObject({
      hasCluster: false,
      zeroBits: ALL,
      dataBits: 0,
      isUnallocated: false,
      fault: undefined,
    });
    expect(decode(EXTENDED, 0n, 0n)).toEqual(NOTHING);
    expect(decode(EXTENDED, COPIED | 0x50000n, 0n)).toMatchObject({
      hasCluster: true,
      dataBits: 0,
      isUnallocated: false,
    });
  });

  it("has no zero flag in the first word", () => {
    expect(decode(EXTENDED, ZERO, 0n)).toEqual(NOTHING);
  });

  it.each([
    { what: "data and zeros at once", word: COPIED | 0x50000n, bitmap: 0x8000_0000_8000_0000n },
    { what: "data without a cluster", word: 0n, bitmap: 1n },
    { what: "data without a cluster, the last", word: 0n, bitmap: 0x8000_0000n },
  ])("finds $what", ({ word, bitmap }) => {
    expect(decode(EXTENDED, word, bitmap).fault).toMatch(/contradicts itself or the host offset/);
  });

  it("does not look at the bits of a compressed cluster", () => {
    expect(decode(EXTENDED, COMPRESSED | 0x50000n, 0xffff_ffff_ffff_ffffn)).toMatchObject({
      compressed: true,
      zeroBits: 0,
      dataBits: 0,
    });
  });
});

describe("encodeEntry", () => {
  function encode(extended: boolean, host: number, zeroBits: number, dataBits: number): bigint[] {
    const view = new DataView(new ArrayBuffer(48));
    for (let at = 0; at < 48; at++) view.setUint8(at, 0x99);
    encodeEntry(view, 16, extended, host, zeroBits, dataBits);
    const outside = [0, 8, ...(extended ? [] : [24]), 32, 40].map((at) => view.getBigUint64(at));
    expect(new Set(outside)).toEqual(new Set([0x9999_9999_9999_9999n]));
    return extended ? [view.getBigUint64(16), view.getBigUint64(24)] : [view.getBigUint64(16)];
  }

  it("writes entries as the specification has them", () => {
    expect(encode(false, -1, 0, 0)).toEqual([0n]);
    expect(encode(false, -1, ALL, 0)).toEqual([ZERO]);
    expect(encode(false, 0x50000, 0, ALL)).toEqual([COPIED | 0x50000n]);
    expect(encode(false, 0x50000, ALL, 0)).toEqual([COPIED | 0x50000n | ZERO]);
    expect(encode(false, 0, 0, ALL)).toEqual([COPIED]);
    expect(encode(true, -1, ALL, 0)).toEqual([0n, 0xffff_ffff_0000_0000n]);
    expect(encode(true, 0x50000, 0x8000_0000, 1)).toEqual([
      COPIED | 0x50000n,
      0x8000_0000_0000_0001n,
    ]);
    // Bits as the operators of the language give them: negative.
    expect(encode(true, 0x50000, 0x8000_0000 | 0, 0x4000_0000 | 0)).toEqual([
      COPIED | 0x50000n,
      0x8000_0000_4000_0000n,
    ]);
  });

  it("writes what is decoded as the same, for any place", () => {
    const random = new Random("encode entry");
    for (let round = 0; round < 2000; round++) {
      const host = random.below(2 ** random.between(1, 37)) * 65536;
      const zeroBits = random.u32();
      const dataBits = (random.u32() & ~zeroBits) >>> 0;
      const [word = 0n, bitmap = 0n] = encode(true, host, zeroBits, dataBits);
      expect(word).toBe(COPIED | BigInt(host));
      if (host === 0) continue;
      expect(decode(EXTENDED, word, bitmap)).toMatchObject({
        ...{ host, zeroBits, dataBits, copied: true, fault: undefined },
      });
      const [standard = 0n] = encode(false, host, zeroBits === 0 ? 0 : ALL, 0);
      expect(decode(USUAL, standard)).toMatchObject({
        ...{ host, zeroBits: zeroBits === 0 ? 0 : ALL, copied: true, fault: undefined },
      });
    }
  });
});
