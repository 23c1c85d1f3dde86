/** Table entries as halves against the specification's words in BigInt. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  compressedHostOffset,
  compressedLength,
  entryHostOffset,
  sectorCountShift,
} from "../../../../src/formats/qcow2/table-entry.ts";

const SAFE = BigInt(Number.MAX_SAFE_INTEGER);
const CLUSTER_BITS = [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21];

const halves = (entry: bigint): [hi: number, lo: number] => [
  Number(entry >> 32n),
  Number(entry & 0xffff_ffffn),
];

/** A host offset as the functions give it: above 2^53 - 1, Infinity. */
const asNumber = (offset: bigint): number =>
  offset > SAFE ? Number.POSITIVE_INFINITY : Number(offset);

const entry = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

describe("entryHostOffset", () => {
  it.each([
    [0n, 0],
    [0x8000_0000_0003_0000n, 0x3_0000],
    [0x0000_0000_0000_01ffn, 0],
    [0xff00_0000_0000_01ffn, 0],
    [0x0000_0000_ffff_fe00n, 0xffff_fe00],
    [0x001f_ffff_ffff_fe00n, 2 ** 53 - 512],
    [0x0020_0000_0000_0000n, Number.POSITIVE_INFINITY],
    [0x00ff_ffff_ffff_fe00n, Number.POSITIVE_INFINITY],
  ])("of %i is %d", (word, offset) => {
    expect(entryHostOffset(...halves(word))).toBe(offset);
  });

  it("is bits 9 to 55", () => {
    fc.assert(
      fc.property(entry, (word) => {
        const offset = ((word >> 9n) & (2n ** 47n - 1n)) << 9n;
        expect(entryHostOffset(...halves(word))).toBe(asNumber(offset));
      }),
      { numRuns: 1000 },
    );
  });
});

describe("compressed cluster descriptors", () => {
  it.each([
    [9, 61],
    [12, 58],
    [16, 54],
    [21, 49],
  ])("with cluster_bits %i have the sector count from bit %i on", (bits, shift) => {
    expect(sectorCountShift(bits)).toBe(shift);
  });

  it.each(CLUSTER_BITS)("of cluster_bits %i agree with the specification in BigInt", (bits) => {
    const x = BigInt(62 - (bits - 8));
    fc.assert(
      fc.property(entry, (word) => {
        const shift = sectorCountShift(bits);
        const [hi, lo] = halves(word);
        // Host offsets have at most 56 bits.
        const offset = word & ((1n << (x < 56n ? x : 56n)) - 1n);
        const host = compressedHostOffset(hi, lo, shift);
        expect(host).toBe(asNumber(offset));
        if (!Number.isFinite(host)) return;
        const sectors = (word & ((1n << 62n) - 1n)) >> x;
        const length = (sectors + 1n) * 512n - (offset % 512n);
        expect(compressedLength(hi, shift, host)).toBe(Number(length));
      }),
      { numRuns: 300 },
    );
  });

  it.each(CLUSTER_BITS)("of cluster_bits %i bound the input to two clusters", (bits) => {
    const shift = sectorCountShift(bits);
    expect(compressedLength(0xffff_ffff, shift, 0)).toBeLessThanOrEqual(2 * 2 ** bits);
    expect(compressedLength(0, shift, 511)).toBe(1);
  });
});
