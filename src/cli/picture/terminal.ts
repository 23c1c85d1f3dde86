/**
 * A picture on a terminal: half-blocks of 256 colours, two cells in each character; without colours a letter
 * for each cell. A cell shows one class: of most of its bytes, but a little that is stored is seen in much
 * that is not.
 */

import type { CellClass, PictureCells } from "../../block/picture-cells.ts";
import type { PictureMap } from "../../block/picture-map.ts";
import { sizeText } from "../size-text.ts";
import { CLASS_TEXTS, orderText, panelsOf, subtitleOf, sumsOf, titleOf } from "./legend.ts";
import { TERMINAL_STYLES } from "./palette.ts";

export interface TerminalForm {
  /** Characters of a line. */
  readonly width: number;
  /** undefined: letters. */
  readonly colours: 256 | undefined;
}

/** Lines of each map, at the most. */
const LINES_MAX = 16;
/** What is before a row: an offset, and a space. Narrow terminals have no room for it. */
const LABEL_WIDTH = 9;
const LABELLED_WIDTH_MIN = 30;
/** What takes space; from this share of a cell on, it is what the cell shows. */
const STORED: readonly CellClass[] = ["data", "compressed", "metadata", "snapshot", "leaked"];
const STORED_MIN = 1 / 8;
/** From this share of breaks on, a cell is shown as broken. */
const BROKEN_MIN = 1 / 16;

const UPPER_HALF = "\u2580";
const RESET = "\u001b[0m";

/** Cells in each line: a multiple of 8, so that offsets are round numbers. */
function columnsOf(width: number): number {
  if (width < LABELLED_WIDTH_MIN) return Math.max(1, width);
  const columns = width - LABEL_WIDTH;
  return columns - (columns % 8);
}

/** Cells that each map has room for. */
export function terminalCells({ width, colours }: TerminalForm): number {
  return columnsOf(width) * LINES_MAX * (colours === undefined ? 1 : 2);
}

export function renderTerminal(map: PictureMap, form: TerminalForm): string {
  const panels = panelsOf(map);
  const order = orderText(map);
  const lines = [cut(titleOf(map), form), cut(subtitleOf(map), form)];
  for (const { heading, cells } of panels) {
    lines.push("", cut(heading, form), ...mapLines(cells, form));
  }
  lines.push("");
  const totals = panels.length > 2 ? "disk / image file / data file" : "disk / image file";
  lines.push(cut(`Legend, with the bytes in ${totals}:`, form));
  for (const { cellClass, sums } of sumsOf(panels)) {
    const { name } = CLASS_TEXTS[cellClass];
    const { broken } = TERMINAL_STYLES[cellClass];
    const values = sums.map((sum) => (sum === 0 ? "-" : sizeText(sum))).join(" / ");
    const hasBroken = broken !== undefined && order !== undefined && map.disk.breaks() > 0;
    const text = `${name.padEnd(12)}${values}`;
    lines.push(`${swatch(cellClass, "whole", form)} ${cut(text, form, 2)}`);
    if (hasBroken) {
      const meaning = `${" ".repeat(2)}${name} where the order breaks`;
      lines.push(`${swatch(cellClass, "broken", form)} ${cut(meaning, form, 2)}`);
    }
  }
  if (order !== undefined) lines.push(cut(order, form));
  return `${lines.join("\n")}\n`;
}

function cut(text: string, { width }: TerminalForm, used = 0): string {
  return [...text].slice(0, Math.max(0, width - used)).join("");
}

function* mapLines(cells: PictureCells, form: TerminalForm): Generator<string> {
  const columns = columnsOf(form.width);
  const rowsOfLine = form.colours === undefined ? 1 : 2;
  for (let first = 0; first < cells.count; first += columns * rowsOfLine) {
    const label = sizeText(first * cells.cellSize).padStart(LABEL_WIDTH - 1);
    const start = form.width < LABELLED_WIDTH_MIN ? "" : `${label} `;
    const draw = form.colours === undefined ? letters : halfBlocks;
    yield start + draw(cells, first, columns);
  }
}

function letters(cells: PictureCells, first: number, columns: number): string {
  let line = "";
  for (let cell = first; cell < Math.min(cells.count, first + columns); cell++) {
    line += styleAt(cells, cell).letter;
  }
  return line;
}

/** Two rows of cells: the upper one in the colour of the letters, the lower one in that of the ground. */
function halfBlocks(cells: PictureCells, first: number, columns: number): string {
  let line = "";
  let colours = "";
  for (let upper = first; upper < Math.min(cells.count, first + columns); upper++) {
    const lower = upper + columns;
    const ground = lower < cells.count ? `48;5;${styleAt(cells, lower).colour}` : "49";
    const wanted = `\u001b[38;5;${styleAt(cells, upper).colour};${ground}m`;
    line += wanted === colours ? UPPER_HALF : wanted + UPPER_HALF;
    colours = wanted;
  }
  return line + RESET;
}

interface CellStyle {
  readonly letter: string;
  readonly colour: number;
}

function classAt(cells: PictureCells, cell: number): CellClass {
  const largest = cells.largestAt(cell);
  if (STORED.includes(largest)) return largest;
  const bytesOf = (cellClass: CellClass): number => cells.bytesAt(cell, cellClass);
  const stored = STORED.reduce((most, next) => (bytesOf(next) > bytesOf(most) ? next : most));
  return bytesOf(stored) >= cells.cellSize * STORED_MIN ? stored : largest;
}

function styleAt(cells: PictureCells, cell: number): CellStyle {
  const style = TERMINAL_STYLES[classAt(cells, cell)];
  return cells.fragmentation(cell) < BROKEN_MIN ? style : (style.broken ?? style);
}

function swatch(cellClass: CellClass, state: "whole" | "broken", form: TerminalForm): string {
  const whole = TERMINAL_STYLES[cellClass];
  const { letter, colour } = state === "broken" ? (whole.broken ?? whole) : whole;
  return form.colours === undefined ? letter : `\u001b[38;5;${colour}m\u2588${RESET}`;
}
