/** Halves of 64-bit values against BigInt and DataView. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { joinHalves, SAFE_HI_MAX, swap32, TWO_TO_32 } from "../../../src/binary/words.ts";

/** The word as DataView reads its bytes in the other order. */
function swappedByDataView(word: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, word, true);
  return view.getUint32(0, false);
}

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });

describe("swap32", () => {
  it.each([
    [0x0000_0000, 0x0000_0000],
    [0x0102_0304, 0x0403_0201],
    [0x0000_0080, 0x8000_0000],
    [0xffff_ffff, 0xffff_ffff],
    [0x8000_00ff, 0xff00_0080],
  ])("turns %i into %i", (word, swapped) => {
    expect(swap32(word)).toBe(swapped);
  });

  it("agrees with DataView and takes signed words, as Atomics.load returns them", () => {
    fc.assert(
      fc.property(u32, (word) => {
        expect(swap32(word)).toBe(swappedByDataView(word));
        expect(swap32(word | 0)).toBe(swappedByDataView(word));
      }),
    );
  });
});

describe("joinHalves", () => {
  it("agrees with BigInt for every safe integer", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: SAFE_HI_MAX }), u32, (hi, lo) => {
        expect(BigInt(joinHalves(hi, lo))).toBe((BigInt(hi) << 32n) | BigInt(lo));
      }),
    );
  });

  it("reaches 2^53 - 1 with the highest safe half, and passes it with the next", () => {
    expect(joinHalves(SAFE_HI_MAX, 0xffff_ffff)).toBe(Number.MAX_SAFE_INTEGER);
    expect(joinHalves(SAFE_HI_MAX + 1, 0)).toBe(Number.MAX_SAFE_INTEGER + 1);
    expect(TWO_TO_32).toBe(2 ** 32);
  });
});
