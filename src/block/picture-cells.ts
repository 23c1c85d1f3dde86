/**
 * A map of bytes in a fixed number of cells: each cell stands for a range, and has the bytes of every class in
 * it. Sums stay exact whatever the size of a cell is.
 */

/** What bytes of a disk or of an image file are, in the order of legends. */
export const CELL_CLASSES = [
  /** Stored as it is. */
  "data",
  /** Compressed clusters. */
  "compressed",
  /** The image says that it reads as zeros. */
  "zero",
  /** From a backing file. */
  "backing",
  /** Nobody has anything here: it reads as zeros. */
  "unallocated",
  /** The host file system stores nothing: it reads as zeros. Of metadata, that is not told apart. */
  "hole",
  /** Header, tables, refcounts and bitmaps. */
  "metadata",
  /** Data that the disk does not show, but a snapshot does. */
  "snapshot",
  /** In use as the refcounts say, but nothing refers to it. */
  "leaked",
  /** Stored, but free to be used. */
  "free",
] as const;
export type CellClass = (typeof CELL_CLASSES)[number];

/** Classes that clusters of the disk have which are in the file: their order may break. */
const MAPPED: readonly CellClass[] = ["data", "compressed", "hole"];

export class PictureCells {
  /** Bytes that the map shows. */
  readonly length: number;
  /** Bytes of each cell; the last one may be cut short. */
  readonly cellSize: number;
  readonly count: number;
  readonly #clusterSize: number;
  readonly #bytes: Readonly<Record<CellClass, Float64Array>>;
  readonly #breaks: Float64Array;

  /**
   * @param length bytes, >= 0
   * @param clusterSize bytes; a cell is this times a power of two
   * @param cellsMax cells there may be, > 0
   */
  constructor(length: number, clusterSize: number, cellsMax: number) {
    let cellSize = clusterSize;
    while (Math.ceil(length / cellSize) > cellsMax) cellSize *= 2;
    const count = Math.ceil(length / cellSize);
    const row = (): Float64Array => new Float64Array(count);
    this.length = length;
    this.cellSize = cellSize;
    this.count = count;
    this.#clusterSize = clusterSize;
    this.#bytes = {
      data: row(),
      compressed: row(),
      zero: row(),
      backing: row(),
      unallocated: row(),
      hole: row(),
      metadata: row(),
      snapshot: row(),
      leaked: row(),
      free: row(),
    };
    this.#breaks = row();
  }

  /** Add a range; what is past the end of the map is left out. */
  add(cellClass: CellClass, offset: number, length: number): void {
    const { cellSize } = this;
    const bytes = this.#bytes[cellClass];
    const end = Math.min(offset + length, this.length);
    for (let at = offset; at < end; ) {
      const cell = Math.floor(at / cellSize);
      const next = Math.min(end, (cell + 1) * cellSize);
      bytes[cell] = (bytes[cell] ?? 0) + next - at;
      at = next;
    }
  }

  /** Note that the data at `offset` is not where what comes before it would have it. */
  addBreak(offset: number): void {
    const cell = Math.floor(offset / this.cellSize);
    if (cell < this.count) this.#breaks[cell] = (this.#breaks[cell] ?? 0) + 1;
  }

  /** Bytes of a class in a cell. */
  bytesAt(cell: number, cellClass: CellClass): number {
    return this.#bytes[cellClass][cell] ?? 0;
  }

  /** Bytes of a class in the whole map. */
  sum(cellClass: CellClass): number {
    return this.#bytes[cellClass].reduce((sum, bytes) => sum + bytes, 0);
  }

  /** How many breaks were noted. */
  breaks(): number {
    return this.#breaks.reduce((sum, count) => sum + count, 0);
  }

  /** The share of a cell's clusters that do not follow the one before: 0 to 1. */
  fragmentation(cell: number): number {
    const breaks = this.#breaks[cell] ?? 0;
    if (breaks === 0) return 0;
    const mapped = MAPPED.reduce((sum, cellClass) => sum + this.bytesAt(cell, cellClass), 0);
    return Math.min(1, breaks / Math.max(1, Math.ceil(mapped / this.#clusterSize)));
  }

  /** The class that most of a cell's bytes have; of equals, the first. */
  largestAt(cell: number): CellClass {
    let largest: CellClass = CELL_CLASSES[0];
    for (const cellClass of CELL_CLASSES) {
      if (this.bytesAt(cell, cellClass) > this.bytesAt(cell, largest)) largest = cellClass;
    }
    return largest;
  }
}
