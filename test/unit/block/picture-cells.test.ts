/** Cells against a map that has every byte on its own. */

import { describe, expect, it } from "vitest";
import { CELL_CLASSES, type CellClass, PictureCells } from "../../../src/block/picture-cells.ts";
import { Random } from "../../support/random.ts";

describe("PictureCells", () => {
  it.each([
    [0, 512, 10, 512, 0],
    [1, 512, 10, 512, 1],
    [5120, 512, 10, 512, 10],
    [5121, 512, 10, 1024, 6],
    [2 ** 53 - 1, 65536, 128, 2 ** 46, 128],
    [2 ** 40, 65536, 1, 2 ** 40, 1],
  ])("%i bytes in clusters of %i: at most %i cells", (length, clusterSize, max, size, count) => {
    const cells = new PictureCells(length, clusterSize, max);
    expect({ size: cells.cellSize, count: cells.count }).toEqual({ size, count });
  });

  it("has each byte in its cell, and nothing past the end", () => {
    const random = new Random("picture cells");
    for (let round = 0; round < 50; round++) {
      const length = random.between(1, 5000);
      const cells = new PictureCells(length, 16, random.between(1, 40));
      const bytes: (CellClass | undefined)[] = new Array(length).fill(undefined);
      for (let start = 0; start < length; ) {
        const size = random.between(1, 300);
        const cellClass = random.pick(CELL_CLASSES_LIST);
        cells.add(cellClass, start, size);
        bytes.fill(cellClass, start, start + size);
        start += size;
      }
      for (let cell = 0; cell < cells.count; cell++) {
        const own = bytes.slice(cell * cells.cellSize, (cell + 1) * cells.cellSize);
        const count = (cellClass: CellClass): number =>
          own.filter((byte) => byte === cellClass).length;
        for (const cellClass of CELL_CLASSES) {
          expect(cells.bytesAt(cell, cellClass)).toBe(count(cellClass));
        }
        const most = Math.max(...CELL_CLASSES.map(count));
        expect(count(cells.largestAt(cell))).toBe(most);
      }
      const sums = CELL_CLASSES.map((cellClass) => cells.sum(cellClass));
      expect(sums.reduce((a, b) => a + b)).toBe(length);
    }
  });

  it("says which share of a cell's clusters is out of order", () => {
    const cells = new PictureCells(64 * 16, 16, 4);
    cells.add("data", 0, 8 * 16);
    cells.addBreak(0);
    cells.addBreak(255);
    cells.addBreak(256);
    cells.addBreak(64 * 16);
    expect([0, 1, 2, 3].map((cell) => cells.fragmentation(cell))).toEqual([2 / 8, 1, 0, 0]);
    expect(cells.breaks()).toBe(3);
  });
});

const CELL_CLASSES_LIST: readonly [CellClass, ...CellClass[]] = ["data", ...CELL_CLASSES];
