/** What pictures say in words, drawn or on a terminal. */

import { basename } from "node:path";
import { CELL_CLASSES, type CellClass, type PictureCells } from "../../block/picture-cells.ts";
import type { PictureMap } from "../../block/picture-map.ts";
import { printable } from "../../errors.ts";
import { sizeText } from "../size-text.ts";

/** Names and meanings. */
export const CLASS_TEXTS: Readonly<Record<CellClass, { name: string; meaning: string }>> = {
  data: { name: "data", meaning: "stored as it is" },
  compressed: { name: "compressed", meaning: "compressed clusters" },
  zero: { name: "zero", meaning: "reads as zeros, the image says" },
  backing: { name: "backing", meaning: "from a backing file" },
  unallocated: { name: "unallocated", meaning: "nothing here: reads as zeros" },
  hole: { name: "hole", meaning: "takes no space on the host" },
  metadata: { name: "metadata", meaning: "header, tables, refcounts" },
  snapshot: { name: "snapshot", meaning: "not of the disk as it is now" },
  leaked: { name: "leaked", meaning: "lost: nothing refers to it" },
  free: { name: "free", meaning: "for later use" },
};

/** One of the maps, and its heading. */
export interface Panel {
  readonly heading: string;
  readonly cells: PictureCells;
}

/** The maps in the order in which they are shown. */
export function panelsOf({ disk, file, dataFile }: PictureMap): Panel[] {
  const panels = [
    { heading: headingOf("Virtual disk", disk), cells: disk },
    { heading: headingOf("Image file", file), cells: file },
  ];
  if (dataFile !== undefined) {
    panels.push({ heading: headingOf("Data file", dataFile), cells: dataFile });
  }
  return panels;
}

function headingOf(what: string, { length, cellSize, count }: PictureCells): string {
  const scale = count === 0 ? "" : `, one cell is ${sizeText(cellSize)}`;
  return `${what}: ${sizeText(length)}${scale}`;
}

export function titleOf({ path }: PictureMap): string {
  return printable(basename(path));
}

export function subtitleOf({ format, clusterSize, disk, file }: PictureMap): string {
  const clusters = clusterSize === undefined ? "" : `, clusters of ${sizeText(clusterSize)}`;
  return `${format}, virtual size ${sizeText(disk.length)}, file ${sizeText(file.length)}${clusters}`;
}

/** A class that occurs, and its bytes in each panel. */
export interface ClassSums {
  readonly cellClass: CellClass;
  readonly sums: readonly number[];
}

export function sumsOf(panels: readonly Panel[]): ClassSums[] {
  return CELL_CLASSES.map((cellClass) => ({
    cellClass,
    sums: panels.map(({ cells }) => cells.sum(cellClass)),
  })).filter(({ sums }) => sums.some((sum) => sum > 0));
}

/** How often the host order breaks; undefined where nothing has an order. */
export function orderText({ disk, format }: PictureMap): string | undefined {
  if (format === "raw") return undefined;
  if (disk.sum("data") + disk.sum("compressed") + disk.sum("hole") === 0) return undefined;
  const breaks = disk.breaks();
  if (breaks === 0) return "data is in the file in the order of the disk";
  return `the order in the file breaks ${breaks} ${breaks === 1 ? "time" : "times"}`;
}
