/**
 * Where everything is in a picture: title, a map for the disk and one for each file, one above the other in
 * the same columns, and the legend. A cell with several classes is divided by their bytes.
 */

import { CELL_CLASSES, type CellClass, type PictureCells } from "../../block/picture-cells.ts";
import type { PictureMap } from "../../block/picture-map.ts";
import { sizeText } from "../size-text.ts";
import {
  CLASS_TEXTS,
  orderText,
  type Panel,
  panelsOf,
  subtitleOf,
  sumsOf,
  titleOf,
} from "./legend.ts";
import type { Paint } from "./palette.ts";
import type { Rectangle, Scene, Text } from "./scene.ts";

/** Cells of a row, and rows of a map at the most. */
export const COLUMNS = 128;
export const ROWS_MAX = 40;

/** A cell, and from one row to the next: between them is room for marks. Units of the scene. */
export const CELL = 8;
const ROW = 12;
const MARK = 2;
const MARK_GAP = 1;
const LEFT = 96;
const RIGHT = 24;
const LINE = 20;
/** Rows that have their offset beside them. */
const LABELLED_ROWS = 4;
/** Cells of the bar that shows the scale. */
const SCALE_CELLS = 16;
/** Columns of the legend. */
const NAME_X = LEFT + 16;
const MEANING_X = LEFT + 120;
const SUMS_X = LEFT + 480;
const SUM_WIDTH = 130;

/** Letters of a title that there is room for. */
const TITLE_MAX = 90;

const SUM_HEADINGS = ["disk", "image file", "data file"];

export function layOut(map: PictureMap): Scene {
  const panels = panelsOf(map);
  const drawing = new Drawing();
  drawing.line(shortened(titleOf(map)), { x: LEFT, size: "title", paint: "ink" });
  drawing.line(subtitleOf(map), { x: LEFT, paint: "faint" });
  for (const panel of panels) drawing.panel(panel);
  drawing.legend(panels, orderText(map));
  return drawing.finish(titleOf(map), describe(map, panels));
}

function shortened(title: string): string {
  const letters = [...title];
  return letters.length <= TITLE_MAX ? title : `${letters.slice(0, TITLE_MAX).join("")}...`;
}

function describe(map: PictureMap, panels: readonly Panel[]): string {
  const sums = sumsOf(panels).map(({ cellClass, sums }) => `${cellClass} ${sums.join(" / ")}`);
  return `${subtitleOf(map)}. Bytes in ${SUM_HEADINGS.slice(0, panels.length).join(" / ")}: ${sums.join(", ")}.`;
}

interface LineStyle {
  readonly x: number;
  readonly paint: Paint;
  readonly size?: Text["size"];
  readonly anchor?: Text["anchor"];
}

class Drawing {
  readonly #rectangles: Rectangle[] = [];
  readonly #texts: Text[] = [];
  #y = 16;

  /** A line of text of its own. */
  line(text: string, style: LineStyle): void {
    this.#y += LINE;
    this.#text(text, this.#y, style);
  }

  panel({ heading, cells }: Panel): void {
    this.#y += 14;
    this.line(heading, { x: LEFT, paint: "ink" });
    this.#scale(cells);
    this.#y += 8;
    const rows = Math.ceil(cells.count / COLUMNS);
    for (let row = 0; row < rows; row++) {
      const y = this.#y + row * ROW;
      if (row % LABELLED_ROWS === 0) {
        const label = sizeText(row * COLUMNS * cells.cellSize);
        this.#text(label, y + CELL, { x: LEFT - 8, paint: "faint", anchor: "end" });
      }
      this.#cells(cells, row * COLUMNS, y);
      this.#marks(cells, row * COLUMNS, y + CELL + MARK_GAP);
    }
    this.#y += rows * ROW;
  }

  legend(panels: readonly Panel[], order: string | undefined): void {
    this.#y += 14;
    this.line("Legend", { x: LEFT, paint: "ink" });
    for (const [index] of panels.entries()) {
      const x = SUMS_X + (index + 1) * SUM_WIDTH;
      this.#text(SUM_HEADINGS[index] ?? "", this.#y, { x, paint: "faint", anchor: "end" });
    }
    for (const { cellClass, sums } of sumsOf(panels)) {
      const { name, meaning } = CLASS_TEXTS[cellClass];
      this.line(name, { x: NAME_X, paint: "ink" });
      this.#rectangle(LEFT, this.#y - CELL, CELL, CELL, cellClass);
      this.#text(meaning, this.#y, { x: MEANING_X, paint: "faint" });
      for (const [index, sum] of sums.entries()) {
        const x = SUMS_X + (index + 1) * SUM_WIDTH;
        this.#text(sum === 0 ? "-" : sizeText(sum), this.#y, { x, paint: "ink", anchor: "end" });
      }
    }
    if (order === undefined) return;
    this.line("order", { x: NAME_X, paint: "ink" });
    this.#rectangle(LEFT, this.#y - MARK, CELL, MARK, "ink");
    const meaning =
      "a line under a cell: the share of its clusters that do not follow the one before";
    this.#text(meaning, this.#y, { x: MEANING_X, paint: "faint" });
    this.line(order, { x: MEANING_X, paint: "faint" });
  }

  finish(title: string, description: string): Scene {
    return {
      width: LEFT + COLUMNS * CELL + RIGHT,
      height: this.#y + LINE,
      title,
      description,
      rectangles: this.#rectangles,
      texts: this.#texts,
    };
  }

  /** A bar as long as some cells, and how much they are. */
  #scale({ cellSize, count }: PictureCells): void {
    if (count === 0) return;
    const end = LEFT + COLUMNS * CELL;
    const width = SCALE_CELLS * CELL;
    const style = { x: end - width - 8, paint: "faint", anchor: "end" } as const;
    this.#text(`${SCALE_CELLS} cells, ${sizeText(SCALE_CELLS * cellSize)}`, this.#y, style);
    this.#rectangle(end - width, this.#y - 4, width, 1, "faint");
    this.#rectangle(end - width, this.#y - 7, 1, 7, "faint");
    this.#rectangle(end - 1, this.#y - 7, 1, 7, "faint");
  }

  /** A row of cells; neighbours of one class are one rectangle. */
  #cells(cells: PictureCells, first: number, y: number): void {
    const end = Math.min(cells.count, first + COLUMNS);
    for (let cell = first; cell < end; ) {
      const x = LEFT + (cell - first) * CELL;
      const shares = sharesOf(cells, cell);
      const [only] = shares;
      if (shares.length === 1 && only !== undefined) {
        let next = cell + 1;
        while (next < end && isOnly(cells, next, only.cellClass)) next++;
        this.#rectangle(x, y, (next - cell) * CELL, CELL, only.cellClass);
        cell = next;
        continue;
      }
      let top = y + CELL;
      for (const { cellClass, units } of shares) {
        top -= units;
        this.#rectangle(x, top, CELL, units, cellClass);
      }
      cell++;
    }
  }

  /** Lines under cells where the order breaks. */
  #marks(cells: PictureCells, first: number, y: number): void {
    const end = Math.min(cells.count, first + COLUMNS);
    for (let cell = first; cell < end; cell++) {
      const width = Math.ceil(cells.fragmentation(cell) * CELL);
      if (width > 0) this.#rectangle(LEFT + (cell - first) * CELL, y, width, MARK, "ink");
    }
  }

  #rectangle(x: number, y: number, width: number, height: number, paint: Paint): void {
    this.#rectangles.push({ x, y, width, height, paint });
  }

  #text(text: string, y: number, style: LineStyle): void {
    this.#texts.push({ y, text, size: "normal", anchor: "start", ...style });
  }
}

/** A class in a cell, and how high it is drawn. */
export interface Share {
  readonly cellClass: CellClass;
  /** Of CELL, at least 1. */
  readonly units: number;
}

/**
 * Divide a cell: each class by its bytes, but what there is is seen; what is too much then is taken from those
 * that are drawn largest. Metadata is a few clusters among many, and leaks are too.
 */
export function sharesOf(cells: PictureCells, cell: number): Share[] {
  const present = CELL_CLASSES.filter((cellClass) => cells.bytesAt(cell, cellClass) > 0);
  const total = present.reduce((sum, cellClass) => sum + cells.bytesAt(cell, cellClass), 0);
  const units = present.map((cellClass) =>
    Math.max(1, Math.round((cells.bytesAt(cell, cellClass) * CELL) / total)),
  );
  let rest = CELL - units.reduce((sum, share) => sum + share, 0);
  while (rest !== 0) {
    const step = Math.sign(rest);
    const most = units.indexOf(Math.max(...units));
    units[most] = (units[most] ?? 0) + step;
    rest -= step;
  }
  return present.map((cellClass, index) => ({ cellClass, units: units[index] ?? 0 }));
}

function isOnly(cells: PictureCells, cell: number, cellClass: CellClass): boolean {
  return CELL_CLASSES.every((other) => cells.bytesAt(cell, other) > 0 === (other === cellClass));
}
