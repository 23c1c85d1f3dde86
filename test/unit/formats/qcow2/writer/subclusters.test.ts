/** Sets of sub-clusters, against sets of numbers. */

import { describe, expect, it } from "vitest";
import {
  ALL_SUBCLUSTERS,
  bitRange,
  hasBit,
  SUBCLUSTERS,
} from "../../../../../src/formats/qcow2/writer/subclusters.ts";

const indexes = Array.from({ length: 32 }, (_, index) => index);

/** The members of a set of bits. */
function members(bits: number): number[] {
  return indexes.filter((index) => (BigInt(bits) >> BigInt(index)) % 2n === 1n);
}

describe("bitRange", () => {
  it("has the bits from one index up to another, for all that there are", () => {
    for (let from = 0; from < 32; from++) {
      for (let to = from + 1; to <= 32; to++) {
        const bits = bitRange(from, to);
        expect(bits).toBeGreaterThan(0);
        expect(members(bits)).toEqual(indexes.slice(from, to));
      }
    }
  });

  it("has all 32 from 0 to 32", () => {
    expect(SUBCLUSTERS).toBe(32);
    expect(bitRange(0, 32)).toBe(ALL_SUBCLUSTERS);
    expect(ALL_SUBCLUSTERS).toBe(4294967295);
  });
});

describe("hasBit", () => {
  it.each([0, 1, 0x8000_0000, 0x7fff_ffff, 0xffff_ffff, 0x1234_5678])("knows %i", (bits) => {
    expect(indexes.filter((index) => hasBit(bits, index))).toEqual(members(bits));
    // The same bits, as the operators of the language give them.
    expect(indexes.filter((index) => hasBit(bits | 0, index))).toEqual(members(bits));
  });
});
