/** Adding up a file: used or not, crossed with the holes of the host, over files laid out by hand. */

import { describe, expect, it } from "vitest";
import { AllocationCounter, type FileAllocation } from "../../../src/formats/allocation.ts";
import { countRawAllocation } from "../../../src/formats/raw/allocation.ts";
import { Random } from "../../support/random.ts";
import { MemoryStorage } from "../memory-storage.ts";

const NOTHING: FileAllocation = {
  fileSize: 0,
  usedData: 0,
  usedZero: 0,
  usedDiscarded: 0,
  usedOverrun: 0,
  unusedData: 0,
  unusedZero: 0,
  unusedDiscarded: 0,
};

function fileOf(length: number, holes: readonly (readonly [number, number])[] = []): MemoryStorage {
  const storage = new MemoryStorage("disk", new Uint8Array(length));
  storage.holes = holes;
  return storage;
}

/** A file that others write to: its length is another one whenever somebody asks. */
class GrowingFile extends MemoryStorage {
  lengths: number[] = [];

  override currentLength(): number {
    return this.lengths.shift() ?? this.bytes.length;
  }
}

type Range = readonly [start: number, end: number];

/** Ranges in ascending order, empty ones among them. */
function randomRanges(random: Random, count: number, limit: number): Range[] {
  const cuts = Array.from({ length: 2 * count }, () => random.below(limit)).sort((a, b) => a - b);
  return Array.from({ length: count }, (_, index) => [
    cuts[2 * index] ?? 0,
    cuts[2 * index + 1] ?? 0,
  ]);
}

/** One byte after the other. */
function countBytes(
  length: number,
  used: readonly Range[],
  holes: readonly Range[],
): FileAllocation {
  const counts = { ...NOTHING, fileSize: length };
  const isIn = (ranges: readonly Range[], byte: number): boolean =>
    ranges.some(([start, end]) => start <= byte && byte < end);
  for (let byte = 0; byte < 3000; byte++) {
    const isUsed = isIn(used, byte);
    if (byte >= length) counts.usedOverrun += isUsed ? 1 : 0;
    else if (isUsed) counts[isIn(holes, byte) ? "usedZero" : "usedData"]++;
    else counts[isIn(holes, byte) ? "unusedZero" : "unusedData"]++;
  }
  return counts;
}

describe("AllocationCounter", () => {
  it("crosses what is used with what the host stores", () => {
    // used    |####....####|
    // stored  |..####......|
    const counter = new AllocationCounter(
      fileOf(120, [
        [0, 20],
        [60, 120],
      ]),
    );
    counter.addUsed(0, 40);
    counter.addUsed(80, 120);
    expect(counter.finish()).toEqual({
      ...NOTHING,
      fileSize: 120,
      usedData: 20,
      usedZero: 60,
      unusedData: 20,
      unusedZero: 20,
    });
  });

  it("takes what is used behind the end of the file for overrun, which is no part of it", () => {
    const counter = new AllocationCounter(fileOf(100));
    counter.addUsed(90, 110);
    counter.addUsed(200, 300);
    expect(counter.finish()).toEqual({
      ...NOTHING,
      fileSize: 100,
      usedData: 10,
      usedOverrun: 110,
      unusedData: 90,
    });
  });

  it.each([
    [0, NOTHING],
    [1, { ...NOTHING, fileSize: 1, unusedData: 1 }],
  ])("knows a file of %i bytes that nothing uses", (length, expected) => {
    expect(new AllocationCounter(fileOf(length)).finish()).toEqual(expected);
  });

  it("adds up to the length that the file has got while it was counted", () => {
    const storage = new GrowingFile("disk", new Uint8Array(1000));
    storage.lengths = [100, 400, 800, 800];
    const counter = new AllocationCounter(storage);
    counter.addUsed(0, 50);
    counter.addUsed(150, 300);
    counter.addUsed(390, 500);
    counter.addUsed(700, 900);
    // It is longer by now, but what is behind 800 was passed before.
    counter.addUsed(950, 960);
    expect(counter.finish()).toEqual({
      ...NOTHING,
      fileSize: 800,
      usedData: 50 + 150 + 110 + 100,
      usedOverrun: 110,
      unusedData: 100 + 90 + 200,
    });
  });

  it("adds up for a file that was cut meanwhile", () => {
    const storage = new GrowingFile("disk", new Uint8Array(1000));
    storage.lengths = [1000, 10, 10];
    const counter = new AllocationCounter(storage);
    counter.addUsed(900, 1100);
    expect(counter.finish()).toMatchObject({ fileSize: 1000, usedData: 100, unusedData: 900 });
  });

  it("adds up byte for byte, whatever is used and wherever holes are", () => {
    const random = new Random("allocation counter");
    for (let round = 0; round < 50; round++) {
      const length = random.below(2000);
      const used = randomRanges(random, 4, 3000);
      const holes = randomRanges(random, 2, 2000);
      const counter = new AllocationCounter(fileOf(length, holes));
      for (const [start, end] of used) counter.addUsed(start, end);
      expect(counter.finish()).toEqual(countBytes(length, used, holes));
    }
  });

  it("refuses to go back", () => {
    const counter = new AllocationCounter(fileOf(100));
    counter.addUsed(10, 20);
    expect(() => counter.addUsed(19, 30)).toThrow(/is counted/);
  });
});

describe("countRawAllocation", () => {
  it("takes all of a raw image for used, holes too, and of any length", () => {
    expect(countRawAllocation(fileOf(1001, [[100, 300]]))).toEqual({
      ...NOTHING,
      fileSize: 1001,
      usedData: 801,
      usedZero: 200,
    });
  });
});
