/** All measurements by name. */

import type { CellTitle } from "./cell.ts";
import { READ_CELL_NAMES, READ_CELLS, type ReadCellName } from "./read-cells.ts";
import { WRITE_CELL_NAMES, WRITE_CELLS, type WriteCellName } from "./write-cells.ts";

export const CELL_NAMES = [...READ_CELL_NAMES, ...WRITE_CELL_NAMES] as const;
export type CellName = ReadCellName | WriteCellName;

export const CELLS: Readonly<Record<CellName, CellTitle>> = { ...READ_CELLS, ...WRITE_CELLS };
