/** Partition tables of DOS, laid out by hand: numbering, chains of logical partitions, hostile ones. */

import { describe, expect, it } from "vitest";
import { readPartitionTable } from "../../../../src/block/partitions/partition-table.ts";
import { Random } from "../../../support/random.ts";
import { diskOf, SECTOR } from "./sample-disk.ts";

interface Entry {
  readonly type: number;
  /** Sectors. */
  readonly start: number;
  /** Sectors. */
  readonly count: number;
  readonly boot?: number;
}

/** Put a boot sector with these entries into sector `lba`. */
function putTable(disk: Buffer, lba: number, entries: readonly (Entry | undefined)[]): void {
  const sector = disk.subarray(lba * SECTOR, (lba + 1) * SECTOR);
  entries.forEach((entry, index) => {
    if (entry === undefined) return;
    const at = 446 + 16 * index;
    sector[at] = entry.boot ?? 0;
    sector[at + 4] = entry.type;
    sector.writeUInt32LE(entry.start, at + 8);
    sector.writeUInt32LE(entry.count, at + 12);
  });
  sector.writeUInt16LE(0xaa55, 510);
}

function windowsOf(disk: Buffer): [number: number, start: number, count: number][] {
  return readPartitionTable(diskOf(disk)).partitions.map(({ number, start, size }) => [
    number,
    start / SECTOR,
    size / SECTOR,
  ]);
}

/** Each sector is a boot sector, of entries that are often within the disk. */
function hostileDisk(random: Random): Buffer {
  const number = (): number => (random.below(2) === 0 ? random.below(70) : random.below(2 ** 32));
  const disk = emptyDisk(64);
  for (let lba = 0; lba < 64; lba++) {
    const entries = Array.from({ length: 4 }, () => {
      return { type: random.pick([0x05, 0x0f, 0x83, 0x85]), start: number(), count: number() };
    });
    putTable(disk, lba, entries);
  }
  return disk;
}

const emptyDisk = (sectors = 1000): Buffer => Buffer.alloc(sectors * SECTOR);

describe("a partition table of DOS", () => {
  it("numbers primary partitions by their place", () => {
    const disk = emptyDisk();
    disk.writeUInt32LE(0x1234abcd, 440);
    putTable(disk, 0, [
      { type: 0x83, start: 10, count: 20, boot: 0x80 },
      undefined,
      { type: 7, start: 500, count: 500 },
    ]);
    expect(readPartitionTable(diskOf(disk))).toEqual({
      kind: "dos",
      sectorSize: 512,
      partitions: [
        { number: 1, start: 5120, size: 10240, type: "0x83", uuid: "1234abcd-01", name: "" },
        { number: 3, start: 256000, size: 256000, type: "0x07", uuid: "1234abcd-03", name: "" },
      ],
    });
  });

  it("numbers logical partitions from 5, and does not show the one that holds them", () => {
    const disk = emptyDisk();
    putTable(disk, 0, [
      { type: 0x83, start: 1, count: 9 },
      { type: 0x05, start: 100, count: 400 },
    ]);
    putTable(disk, 100, [
      { type: 0x83, start: 1, count: 50 },
      { type: 0x05, start: 100, count: 100 },
    ]);
    putTable(disk, 200, [
      { type: 0x82, start: 2, count: 60 },
      { type: 0x05, start: 200, count: 100 },
    ]);
    putTable(disk, 300, [undefined, { type: 0x83, start: 3, count: 7 }]);
    expect(windowsOf(disk)).toEqual([
      [1, 1, 9],
      [5, 101, 50],
      [6, 202, 60],
      [7, 303, 7],
    ]);
  });

  it("shows ranges that overlap, cuts one at the end of the disk, leaves out one behind it", () => {
    const disk = emptyDisk();
    putTable(disk, 0, [
      { type: 0x83, start: 0, count: 1000 },
      { type: 0x83, start: 999, count: 2 ** 32 - 1 },
      { type: 0x83, start: 1000, count: 1 },
      { type: 0x83, start: 2 ** 32 - 1, count: 2 ** 32 - 1 },
    ]);
    expect(windowsOf(disk)).toEqual([
      [1, 0, 1000],
      [2, 999, 1],
    ]);
  });

  it.each([
    ["itself", 0],
    ["the first of the chain", 0],
    ["outside the disk", 5000],
  ])("ends a chain that leads to %s", (_, next) => {
    const disk = emptyDisk();
    putTable(disk, 0, [{ type: 0x0f, start: 100, count: 900 }]);
    putTable(disk, 100, [
      { type: 0x83, start: 1, count: 5 },
      { type: 0x05, start: 50, count: 50 },
    ]);
    putTable(disk, 150, [
      { type: 0x83, start: 1, count: 6 },
      { type: 0x05, start: next, count: 50 },
    ]);
    expect(windowsOf(disk)).toEqual([
      [5, 101, 5],
      [6, 151, 6],
    ]);
  });

  it("follows a chain for a hundred sectors", () => {
    const disk = emptyDisk(2000);
    putTable(disk, 0, [{ type: 0x05, start: 10, count: 1990 }]);
    for (let index = 0; index < 500; index++) {
      putTable(disk, 10 + 2 * index, [
        { type: 0x83, start: 1, count: 1 },
        { type: 0x05, start: 2 * (index + 1), count: 2 },
      ]);
    }
    expect(windowsOf(disk)).toHaveLength(100);
  });

  it.each([
    ["no signature", (disk: Buffer) => disk.writeUInt16LE(0xaa54, 510)],
    ["code where a table would be", (disk: Buffer) => disk.writeUInt8(0x33, 446 + 16)],
  ])("is none with %s", (_, damage) => {
    const disk = emptyDisk();
    putTable(disk, 0, [{ type: 0x83, start: 10, count: 20 }]);
    damage(disk);
    expect(readPartitionTable(diskOf(disk)).kind).toBe("none");
  });

  it.each([0, 1, 511, 512])("can be looked for on a disk of %i bytes", (size) => {
    const disk = Buffer.alloc(size, 0xff);
    expect(readPartitionTable(diskOf(disk)).partitions).toEqual([]);
  });

  it("never names a range outside the disk, whatever it says", () => {
    const random = new Random("hostile partition tables");
    for (let round = 0; round < 300; round++) {
      const disk = hostileDisk(random);
      const numbers = new Set<number>();
      for (const { number, start, size } of readPartitionTable(diskOf(disk)).partitions) {
        expect(start >= 0 && size > 0 && start + size <= disk.length).toBe(true);
        expect(numbers.has(number)).toBe(false);
        numbers.add(number);
      }
    }
  });
});
