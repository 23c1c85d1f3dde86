/** Reading tables of a file without its holes: a sparse file may claim terabytes of them. */

import type { Endianness } from "../binary/struct.ts";
import type { HostRun, Storage } from "../storage/storage.ts";
import { NativeBuffer } from "../syscalls/native-buffer.ts";

/** Tables are read in pieces of this many bytes. */
const PIECE = 65536;

export class DataRuns {
  readonly #storage: Storage;
  readonly #length: number;
  readonly #little: boolean;
  readonly #run: HostRun = { isData: false, length: 0 };
  #runStart = 0;
  readonly #piece = NativeBuffer.allocate(PIECE);

  /**
   * @param length bytes of the file
   * @param endianness of table entries
   */
  constructor(storage: Storage, length: number, endianness: Endianness = "be") {
    this.#storage = storage;
    this.#length = length;
    this.#little = endianness === "le";
  }

  /** The first byte from `start` on that may be other than zero, or `end`. */
  nextData(start: number, end: number): number {
    const limit = Math.min(end, this.#length);
    let at = start;
    while (at < limit) {
      if (at < this.#runStart || at >= this.#runStart + this.#run.length) {
        this.#storage.hostRun(at, this.#run);
        this.#runStart = at;
      }
      if (this.#run.isData) return at;
      at = this.#runStart + this.#run.length;
    }
    return end;
  }

  /**
   * Visit the 8-byte entries of a table, except those in holes or past the end of the file, which are 0.
   *
   * @param start, end host offsets; multiples of 8
   * @param visit the halves of the entry at the host offset `at`
   */
  forEachEntry(
    start: number,
    end: number,
    visit: (hi: number, lo: number, at: number) => void,
  ): void {
    const { view } = this.#piece;
    for (let at = start; at < end; ) {
      // A run of data may end within an entry only where the file does.
      const data = this.nextData(at, end);
      const from = data - ((data - start) % 8);
      if (from >= end) return;
      const length = Math.min(PIECE, end - from);
      this.#storage.readAt(this.#piece, 0, length, from);
      for (let offset = 0; offset < length; offset += 8) {
        const hi = view.getUint32(offset + (this.#little ? 4 : 0), this.#little);
        const lo = view.getUint32(offset + (this.#little ? 0 : 4), this.#little);
        if (hi !== 0 || lo !== 0) visit(hi, lo, from + offset);
      }
      at = from + length;
    }
  }
}
