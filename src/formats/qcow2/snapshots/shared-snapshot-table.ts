/**
 * Where the snapshot table of an image is that is written to, and which snapshots are in it, for all
 * threads. A snapshot has a number that stays its own as long as the image is open: its place in the
 * table does not. Changed under the exclusive lock of the image.
 *
 *     4 doubles          snapshots | host offset of the table | its bytes | the next number
 *     a double a place   byte offset of the entry in the table
 *     a word a place     the number
 */

import { SNAPSHOTS_MAX } from "../header.ts";
import type { Qcow2Layout } from "../layout.ts";

const COUNT = 0;
const OFFSET = 1;
const SIZE = 2;
const NEXT_NUMBER = 3;
const DOUBLES = 4;

/** What a change makes of the table. */
export interface SnapshotTablePlace {
  /** Host offset, bytes; 0: there is none. */
  readonly offset: number;
  readonly size: number;
}

/** Memory for the table of an image as it was opened. */
export function createSharedSnapshotTable({
  header,
  snapshotTable,
}: Qcow2Layout): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(
    (DOUBLES + SNAPSHOTS_MAX) * Float64Array.BYTES_PER_ELEMENT +
      SNAPSHOTS_MAX * Uint32Array.BYTES_PER_ELEMENT,
  );
  const table = new SharedSnapshotTable(memory);
  const offsets = new Float64Array(snapshotTable.offsets);
  const numbers = Uint32Array.from(offsets, (_, index) => index);
  table.replace({ offset: header.snapshots_offset, size: snapshotTable.size }, offsets, numbers);
  return memory;
}

export class SharedSnapshotTable {
  readonly #doubles: Float64Array;
  readonly #offsets: Float64Array;
  readonly #numbers: Uint32Array;

  constructor(memory: SharedArrayBuffer) {
    this.#doubles = new Float64Array(memory, 0, DOUBLES);
    this.#offsets = new Float64Array(memory, this.#doubles.byteLength, SNAPSHOTS_MAX);
    const numbers = this.#doubles.byteLength + this.#offsets.byteLength;
    this.#numbers = new Uint32Array(memory, numbers, SNAPSHOTS_MAX);
  }

  get count(): number {
    return this.#doubles[COUNT] ?? 0;
  }

  /** Host offset, bytes. */
  get offset(): number {
    return this.#doubles[OFFSET] ?? 0;
  }

  /** Bytes. */
  get size(): number {
    return this.#doubles[SIZE] ?? 0;
  }

  /** The number that the next new snapshot gets. */
  get nextNumber(): number {
    return this.#doubles[NEXT_NUMBER] ?? 0;
  }

  /** The number of the snapshot at a place. */
  numberAt(index: number): number {
    return this.#numbers[index] ?? 0;
  }

  /** The place of a snapshot; -1: it is not there any more. */
  indexOf(number: number): number {
    return this.#numbers.subarray(0, this.count).indexOf(number);
  }

  /** Byte offset, in the table, of the entry at a place. */
  entryOffset(index: number): number {
    return this.#offsets[index] ?? 0;
  }

  /** Byte offsets of all entries. */
  entryOffsets(): Float64Array {
    return this.#offsets.slice(0, this.count);
  }

  /** The numbers of all entries. */
  numbers(): Uint32Array {
    return this.#numbers.slice(0, this.count);
  }

  /** Take over another table. */
  replace(place: SnapshotTablePlace, offsets: Float64Array, numbers: Uint32Array): void {
    this.#offsets.set(offsets);
    this.#numbers.set(numbers);
    this.#doubles.set([offsets.length, place.offset, place.size]);
    for (const number of numbers) {
      this.#doubles[NEXT_NUMBER] = Math.max(this.nextNumber, number + 1);
    }
  }
}
