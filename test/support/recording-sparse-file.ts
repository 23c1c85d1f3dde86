/** A file in memory that takes space only where it was written; copies share pages until one changes. */

import fs from "node:fs";
import { LocalFile } from "../../src/storage/local-file.ts";
import { NativeBuffer } from "../../src/syscalls/native-buffer.ts";

export const PAGE_SIZE = 4096;

/** Files are read in pieces of this many bytes. */
const PIECE_SIZE = 1024 * 1024;

export class SparseFile {
  /** Kept: the host clears new memory page by page, which takes longer than to read a small file. */
  static #piece: NativeBuffer | undefined;

  #length = 0;
  readonly #pages: Map<number, Uint8Array>;
  /** The pages that no copy shares: only these are changed in place. */
  #own = new Set<number>();

  private constructor(pages: Map<number, Uint8Array>, length: number) {
    this.#pages = pages;
    this.#length = length;
  }

  static empty(length = 0): SparseFile {
    return new SparseFile(new Map(), length);
  }

  /** The content of a file; its holes, and pages of zeros, take no space. */
  static load(path: string): SparseFile {
    return SparseFile.loadPart(path, 0, Number.POSITIVE_INFINITY);
  }

  /**
   * As `load`, of a part of a file.
   *
   * @param start a multiple of PAGE_SIZE
   */
  static loadPart(path: string, start: number, length: number): SparseFile {
    const source = LocalFile.open(path, "read-only");
    try {
      const end = Math.min(source.length, start + length);
      const file = SparseFile.empty(end - start);
      SparseFile.#piece ??= NativeBuffer.allocate(PIECE_SIZE);
      const piece = SparseFile.#piece;
      const run = { isData: true, length: 0 };
      for (let offset = start; offset < end; offset += run.length) {
        source.hostRun(offset, run);
        if (!run.isData) continue;
        // Up to a multiple of the size of pages, so that each page is looked at once.
        run.length = Math.min(run.length, PIECE_SIZE - (offset % PAGE_SIZE), end - offset);
        source.readAt(piece, 0, run.length, offset);
        file.#writeData(offset - start, piece.bytes.subarray(0, run.length));
      }
      return file;
    } finally {
      source.close();
    }
  }

  get length(): number {
    return this.#length;
  }

  /** Bytes that pages take. */
  get allocated(): number {
    return this.#pages.size * PAGE_SIZE;
  }

  clone(): SparseFile {
    this.#own.clear();
    return new SparseFile(new Map(this.#pages), this.#length);
  }

  /** Reads into the whole of `target`; what lies past the end is zeros. */
  read(offset: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const { index, start, count } = partOfPage(offset + done, target.length - done);
      const page = this.#pages.get(index);
      if (page === undefined) target.fill(0, done, done + count);
      else target.set(page.subarray(start, start + count), done);
      done += count;
    }
  }

  bytesAt(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    this.read(offset, bytes);
    return bytes;
  }

  write(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const { index, start, count } = partOfPage(offset + done, bytes.length - done);
      this.#ownPage(index).set(bytes.subarray(done, done + count), start);
      done += count;
    }
    this.#length = Math.max(this.#length, offset + bytes.length);
  }

  /** As `write`, but pages of zeros stay holes. */
  #writeData(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const { count } = partOfPage(offset + done, bytes.length - done);
      const part = bytes.subarray(done, done + count);
      if (!isZero(part)) this.write(offset + done, part);
      done += count;
    }
  }

  /** Makes a range read as zeros, and whole pages of it holes. The length stays. */
  zero(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#length);
    const firstWhole = Math.ceil(offset / PAGE_SIZE);
    const endWhole = Math.floor(end / PAGE_SIZE);
    if (endWhole <= firstWhole) {
      this.#zeroPart(offset, Math.min(end, firstWhole * PAGE_SIZE));
      this.#zeroPart(Math.max(offset, firstWhole * PAGE_SIZE), end);
      return;
    }
    this.#zeroPart(offset, firstWhole * PAGE_SIZE);
    this.#deletePages(firstWhole, endWhole);
    this.#zeroPart(endWhole * PAGE_SIZE, end);
  }

  /** Zeroes bytes of one page. */
  #zeroPart(offset: number, end: number): void {
    const index = Math.floor(offset / PAGE_SIZE);
    if (offset >= end || !this.#pages.has(index)) return;
    this.#ownPage(index).fill(0, offset - index * PAGE_SIZE, end - index * PAGE_SIZE);
  }

  #deletePages(first: number, end: number): void {
    if (end - first > this.#pages.size) {
      for (const index of this.#pages.keys()) {
        if (index >= first && index < end) this.#deletePage(index);
      }
      return;
    }
    for (let index = first; index < end; index++) this.#deletePage(index);
  }

  #deletePage(index: number): void {
    this.#pages.delete(index);
    this.#own.delete(index);
  }

  setLength(length: number): void {
    if (length < this.#length) {
      this.zero(length, this.#length - length);
      this.#deletePages(Math.ceil(length / PAGE_SIZE), Math.ceil(this.#length / PAGE_SIZE));
    }
    this.#length = length;
  }

  /** The numbers of the pages that are no holes; in no order. */
  pageIndexes(): Iterable<number> {
    return this.#pages.keys();
  }

  /** Whether both read as the same bytes. */
  equals(other: SparseFile): boolean {
    if (this.#length !== other.#length) return false;
    for (const index of new Set([...this.#pages.keys(), ...other.#pages.keys()])) {
      const page = this.#pages.get(index) ?? ZEROS;
      if (Buffer.compare(page, other.#pages.get(index) ?? ZEROS) !== 0) return false;
    }
    return true;
  }

  /** The page at a multiple of PAGE_SIZE, not to be changed; undefined if it is a hole. */
  pageAt(offset: number): Uint8Array | undefined {
    return this.#pages.get(offset / PAGE_SIZE);
  }

  /** Writes the content to a new file that has holes where this one has. */
  save(path: string): void {
    const fd = fs.openSync(path, "w");
    try {
      const indexes = [...this.#pages.keys()].sort((a, b) => a - b);
      let run: Uint8Array[] = [];
      let first = 0;
      for (const index of indexes) {
        if (run.length > 0 && (index !== first + run.length || run.length === RUN_PAGES_MAX)) {
          fs.writevSync(fd, run, first * PAGE_SIZE);
          run = [];
        }
        if (run.length === 0) first = index;
        const page = this.#pages.get(index);
        if (page !== undefined) run.push(page);
      }
      if (run.length > 0) fs.writevSync(fd, run, first * PAGE_SIZE);
      fs.ftruncateSync(fd, this.#length);
    } finally {
      fs.closeSync(fd);
    }
  }

  #ownPage(index: number): Uint8Array {
    const page = this.#pages.get(index);
    if (page !== undefined && this.#own.has(index)) return page;
    const copy = new Uint8Array(PAGE_SIZE);
    if (page !== undefined) copy.set(page);
    this.#pages.set(index, copy);
    this.#own.add(index);
    return copy;
  }
}

/** Linux takes 1024 pieces in one call. */
const RUN_PAGES_MAX = 1024;

const ZEROS = Buffer.alloc(PAGE_SIZE);

/** Whether at most PAGE_SIZE bytes are all zeros. */
export function isZero(bytes: Uint8Array): boolean {
  return ZEROS.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
}

function partOfPage(
  offset: number,
  length: number,
): { index: number; start: number; count: number } {
  const index = Math.floor(offset / PAGE_SIZE);
  const start = offset - index * PAGE_SIZE;
  return { index, start, count: Math.min(length, PAGE_SIZE - start) };
}
