/**
 * A disk in cells that threads write to at random: each cell belongs to one thread, who writes one value
 * after the other to it; whoever reads it knows which values it may have. Source of truth is shared memory,
 * apart from the disk.
 *
 *     word 2 c       the value of cell c whose write was begun last
 *     word 2 c + 1   the value of cell c whose write has ended last
 */

/** Bytes. Smaller than any cluster: cells of several threads meet in one. */
export const CELL_SIZE = 1024;
const WORD_BYTES = 8;
/** Every so many values are zeros; so is the first value of every so many runs of cells. */
const ZERO_EVERY = 5;
const ZERO_RUN_CELLS = 256;

export function createCells(cells: number): SharedArrayBuffer {
  return new SharedArrayBuffer(cells * 2 * Int32Array.BYTES_PER_ELEMENT);
}

/** Whether a value of a cell is nothing but zeros. */
export function isZeroValue(cell: number, value: number): boolean {
  if (value === 0) return Math.floor(cell / ZERO_RUN_CELLS) % 3 === 1;
  return value % ZERO_EVERY === 0;
}

/** Fills a cell with a value: each eight bytes say which cell, and which value. */
export function putValue(bytes: Buffer, at: number, cell: number, value: number): void {
  bytes.fill(0, at, at + CELL_SIZE);
  if (isZeroValue(cell, value)) return;
  for (let offset = at; offset < at + CELL_SIZE; offset += WORD_BYTES) {
    bytes.writeUInt32LE(cell + 1, offset);
    bytes.writeUInt32LE(value, offset + 4);
  }
}

/** Cells of one disk, as one thread sees them. */
export class Cells {
  readonly #words: Int32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory);
  }

  begun(cell: number): number {
    return Atomics.load(this.#words, 2 * cell);
  }

  ended(cell: number): number {
    return Atomics.load(this.#words, 2 * cell + 1);
  }

  /** The owner begins to write the next value; returns it. */
  begin(cell: number): number {
    return Atomics.add(this.#words, 2 * cell, 1) + 1;
  }

  end(cell: number, value: number): void {
    Atomics.store(this.#words, 2 * cell + 1, value);
  }
}

/**
 * Why a cell cannot read so, or undefined.
 *
 * @param oldest the value whose write had ended when the read began
 * @param newest the value whose write had begun when the read had ended
 */
export function wrongWord(
  bytes: Buffer,
  at: number,
  { cell, oldest, newest }: { cell: number; oldest: number; newest: number },
): string | undefined {
  let mayBeZero = false;
  for (let value = oldest; value <= newest; value++) mayBeZero ||= isZeroValue(cell, value);
  for (let offset = at; offset < at + CELL_SIZE; offset += WORD_BYTES) {
    const owner = bytes.readUInt32LE(offset);
    const value = bytes.readUInt32LE(offset + 4);
    const isZero = owner === 0 && value === 0;
    if (isZero ? mayBeZero : owner === cell + 1 && oldest <= value && value <= newest) continue;
    return `cell ${cell} byte ${offset - at}: ${owner}/${value}, not of ${oldest}..${newest}`;
  }
  return undefined;
}
