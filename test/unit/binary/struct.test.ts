/** Struct tables against a decoder that goes byte by byte in BigInt. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  decode,
  type Endianness,
  encode,
  type Field,
  type FieldType,
  offsetOf,
  sizeOf,
  UnsafeIntegerError,
} from "../../../src/binary/struct.ts";

// biome-ignore format: a table reads in columns
const SAMPLE = [
  ["small",   0, "u8",     ""],
  ["odd",     1, "u16",    "not aligned"],
  ["word",    4, "u32",    ""],
  ["signed",  8, "i32",    ""],
  ["offset", 12, "u64",    "not aligned to 8"],
  ["back",   20, "i64",    ""],
  ["mask",   28, "mask64", ""],
] as const satisfies readonly Field[];

const WIDTHS: Readonly<Record<FieldType, number>> = {
  u8: 1,
  u16: 2,
  u32: 4,
  i32: 4,
  u64: 8,
  i64: 8,
  mask64: 8,
};

const endianness = fc.constantFrom<Endianness>("le", "be");

/** An integer from its bytes, one after the other. */
function slowInteger(bytes: Uint8Array, at: number, type: FieldType, order: Endianness): bigint {
  let value = 0n;
  for (let index = 0; index < WIDTHS[type]; index++) {
    const from = order === "be" ? at + index : at + WIDTHS[type] - 1 - index;
    value = value * 256n + BigInt(bytes[from] ?? 0);
  }
  const bits = WIDTHS[type] * 8;
  return type.startsWith("i") ? BigInt.asIntN(bits, value) : value;
}

describe("offsetOf and sizeOf", () => {
  it("give the place of a field and the bytes up to its end", () => {
    expect(offsetOf(SAMPLE, "offset")).toBe(12);
    expect(sizeOf(SAMPLE, "odd")).toBe(3);
    expect(sizeOf(SAMPLE, "word")).toBe(8);
    expect(sizeOf(SAMPLE)).toBe(36);
  });

  it("take the furthest end for the whole struct, whatever the order of the rows", () => {
    const reversed = [
      ["last", 6, "u16", ""],
      ["first", 0, "u32", ""],
    ] as const satisfies readonly Field[];
    expect(sizeOf(reversed)).toBe(8);
    expect(sizeOf([])).toBe(0);
  });

  it("fail for a name that is not in the table", () => {
    const fields: readonly Field[] = SAMPLE;
    expect(() => offsetOf(fields, "absent")).toThrow(/absent/);
  });
});

describe("decode", () => {
  // biome-ignore format: one field a row
  const bytes = Uint8Array.of(
    0xf1, 0xf2, 0xf3, 0xf4,
    0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa, 0xfb, 0xfc,
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x00,
    0xff, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0x80, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07,
  );

  it("reads big-endian fields", () => {
    expect(decode(SAMPLE, bytes, "be")).toEqual({
      small: 0xf1,
      odd: 0xf2f3,
      word: 0xf5f6_f7f8,
      signed: 0xf9fa_fbfc - 2 ** 32,
      offset: 0x0001_0203_0405_0600,
      back: -(2 ** 48) - 1,
      mask: 0x8001_0203_0405_0607n,
    });
  });

  it("reads little-endian fields", () => {
    expect(decode(SAMPLE, bytes, "le")).toEqual({
      small: 0xf1,
      odd: 0xf3f2,
      word: 0xf8f7_f6f5,
      signed: 0xfcfb_faf9 - 2 ** 32,
      offset: 0x0006_0504_0302_0100,
      back: -257,
      mask: 0x0706_0504_0302_0180n,
    });
  });

  it("agrees with the slow decoder on any bytes, at any start", () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 50, maxLength: 50 }),
        fc.nat(14),
        endianness,
        (random, start, order) => {
          for (const [name, offset, type] of SAMPLE) {
            const table = [[name, offset, type, ""]] as const;
            const slow = slowInteger(random, start + offset, type, order);
            const limit = BigInt(Number.MAX_SAFE_INTEGER);
            if (type !== "mask64" && (slow > limit || slow < -limit)) {
              expect(() => decode(table, random, order, start)).toThrow(UnsafeIntegerError);
            } else {
              const value = decode(table, random, order, start)[name];
              expect(BigInt(value ?? -1)).toBe(slow);
            }
          }
        },
      ),
    );
  });

  it("sees through a view that starts within its buffer", () => {
    const view = bytes.subarray(4);
    expect(decode([["word", 0, "u32", ""]], view, "be").word).toBe(0xf5f6_f7f8);
  });

  it.each([
    [0, { small: 0, odd: 0, word: 0 }],
    [1, { small: 0xf1, odd: 0, word: 0 }],
    [2, { small: 0xf1, odd: 0, word: 0 }],
    [3, { small: 0xf1, odd: 0xf2f3, word: 0 }],
    [7, { small: 0xf1, odd: 0xf2f3, word: 0 }],
    [8, { small: 0xf1, odd: 0xf2f3, word: 0xf5f6_f7f8 }],
  ])("reads fields that reach past %i existing bytes as 0", (length, expected) => {
    const decoded = decode(SAMPLE, bytes, "be", 0, length);
    expect(decoded).toMatchObject(expected);
    expect(decoded.mask).toBe(0n);
  });

  it("reads fields past the end of short bytes as 0", () => {
    expect(decode(SAMPLE, bytes.subarray(0, 3), "be")).toMatchObject({ odd: 0xf2f3, word: 0 });
    expect(decode(SAMPLE, new Uint8Array(0), "le").mask).toBe(0n);
  });

  const wide = [["value", 0, "u64", ""]] as const satisfies readonly Field[];
  const signed = [["value", 0, "i64", ""]] as const satisfies readonly Field[];
  const eight = (value: bigint): Buffer => {
    const buffer = Buffer.alloc(8);
    buffer.writeBigUInt64BE(BigInt.asUintN(64, value));
    return buffer;
  };

  it("takes the highest safe integer and refuses the next, naming field and value", () => {
    expect(decode(wide, eight(2n ** 53n - 1n), "be").value).toBe(Number.MAX_SAFE_INTEGER);
    expect(() => decode(wide, eight(2n ** 53n), "be")).toThrow(
      expect.objectContaining({ name: "UnsafeIntegerError", field: "value", value: 2n ** 53n }),
    );
    expect(() => decode(wide, eight(2n ** 64n - 1n), "be")).toThrow(UnsafeIntegerError);
  });

  it("takes negative i64 down to the lowest safe integer", () => {
    expect(decode(signed, eight(-1n), "be").value).toBe(-1);
    expect(decode(signed, eight(-(2n ** 53n) + 1n), "be").value).toBe(Number.MIN_SAFE_INTEGER);
    expect(() => decode(signed, eight(-(2n ** 63n)), "be")).toThrow(UnsafeIntegerError);
  });
});

describe("encode", () => {
  it("writes the bytes that the slow decoder reads back", () => {
    fc.assert(
      fc.property(
        fc.record({
          small: fc.nat(0xff),
          odd: fc.nat(0xffff),
          word: fc.integer({ min: 0, max: 0xffff_ffff }),
          signed: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
          offset: fc.maxSafeNat(),
          back: fc.maxSafeInteger(),
          mask: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
        }),
        fc.nat(8),
        endianness,
        (values, start, order) => {
          const bytes = new Uint8Array(start + 40);
          encode(SAMPLE, values, bytes, order, start);
          for (const [name, offset, type] of SAMPLE) {
            expect(slowInteger(bytes, start + offset, type, order)).toBe(BigInt(values[name]));
          }
        },
      ),
    );
  });

  it("leaves fields that are not named, and bytes between fields, as they are", () => {
    const bytes = new Uint8Array(36).fill(0xaa);
    encode(SAMPLE, { word: 1, mask: 2n }, bytes, "le");
    const expected = new Uint8Array(36).fill(0xaa);
    expected.set([1, 0, 0, 0], 4);
    expected.set([2, 0, 0, 0, 0, 0, 0, 0], 28);
    expect(bytes).toEqual(expected);
  });

  it("writes negative numbers in two's complement", () => {
    const bytes = new Uint8Array(36);
    encode(SAMPLE, { signed: -2, back: -1 }, bytes, "be");
    expect([...bytes.subarray(8, 12)]).toEqual([0xff, 0xff, 0xff, 0xfe]);
    expect([...bytes.subarray(20, 28)]).toEqual(Array(8).fill(0xff));
  });

  it("fails rather than write past the end", () => {
    expect(() => encode(SAMPLE, { mask: 1n }, new Uint8Array(35), "le")).toThrow(RangeError);
  });
});
