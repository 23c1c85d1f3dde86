/** Hashes of numbers that images choose: those that others would have in one place are spread. */

import { describe, expect, it } from "vitest";
import { hashOf, newHashSeed } from "../../../src/binary/seeded-hash.ts";

const COUNT = 100_000;
const BITS = 8;

describe("hashOf", () => {
  it.each([
    ["one after the other", (index: number) => index],
    ["multiples of 2^16", (index: number) => index * 2 ** 16],
    ["alike but for the upper bits", (index: number) => index * 2 ** 32],
    [
      "alike but for the lowest and the highest bit",
      (index: number) => (index % 2) + index * 2 ** 33,
    ],
  ])("spreads numbers over its upper bits: %s", (_, numberOf) => {
    const seed = newHashSeed();
    const counts = new Uint32Array(2 ** BITS);
    for (let index = 0; index < COUNT; index++) {
      const place = hashOf(numberOf(index), seed) >>> (32 - BITS);
      counts[place] = (counts[place] ?? 0) + 1;
    }
    const mean = COUNT / counts.length;
    expect(Math.max(...counts)).toBeLessThan(2 * mean);
    expect(Math.min(...counts)).toBeGreaterThan(mean / 2);
  });

  it("is another one with another seed, and the same with the same", () => {
    const hashes = new Set(Array.from({ length: 1000 }, (_, seed) => hashOf(2 ** 40 + 5, seed)));
    expect(hashes.size).toBeGreaterThan(990);
    expect(hashOf(7, 3)).toBe(hashOf(7, 3));
  });
});
