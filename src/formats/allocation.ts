/**
 * What the bytes of an image file are for, crossed with what the host stores of them. Source: the
 * interface of format allocation information that was proposed for QEMU.
 *
 *               host: data     host: reads as zeros     neither           past the end of the file
 *     used      usedData       usedZero                 usedDiscarded     usedOverrun
 *     unused    unusedData     unusedZero               unusedDiscarded
 */

import assert from "node:assert";
import type { HostRun, Storage } from "../storage/storage.ts";

/**
 * One image file, all in bytes. All but `usedOverrun` add up to `fileSize`.
 *
 * used: something of the image is there, or is said to be: of qcow2, clusters whose refcount is not 0; of
 * QED, the header and what tables refer to; of raw, all.
 *
 * data: SEEK_DATA finds it, or the host cannot tell. zero: the host stores nothing and promises that it
 * reads as zeros, as it does for each hole of a file. discarded: the host stores nothing and promises nothing,
 * as a device may after a discard. Files have no such places, and block devices cannot be asked: they are data.
 * So both are 0 as long as images live there; QEMU's driver of files says the same.
 */
export interface FileAllocation {
  readonly fileSize: number;
  readonly usedData: number;
  readonly usedZero: number;
  readonly usedDiscarded: number;
  /** Used, but the file ends before. */
  readonly usedOverrun: number;
  readonly unusedData: number;
  readonly unusedZero: number;
  readonly unusedDiscarded: number;
}

/** Adds up a file from its start to its end; who knows what is used tells it in that order. */
export class AllocationCounter {
  readonly #storage: Storage;
  readonly #run: HostRun = { isData: false, length: 0 };
  #runEnd = 0;
  /** Bytes of the file: as of lately, while it may grow. */
  #fileSize: number;
  /** What is before it is counted. */
  #position = 0;
  #usedData = 0;
  #usedZero = 0;
  #usedOverrun = 0;
  #unusedData = 0;
  #unusedZero = 0;

  constructor(storage: Storage) {
    this.#storage = storage;
    this.#fileSize = storage.currentLength();
  }

  /**
   * Count a range as used.
   *
   * @param start, end host offsets, bytes; start is not before the last end
   */
  addUsed(start: number, end: number): void {
    assert(start >= this.#position && end >= start, `${this.#storage.path}: ${start} is counted`);
    // A file that is written to grows before something is used behind its old end. Once that end is
    // passed it stays: what is before is counted.
    if (end > this.#fileSize && this.#position <= this.#fileSize) {
      this.#fileSize = Math.max(this.#fileSize, this.#storage.currentLength());
    }
    this.#countUnused(start);
    const inFile = Math.max(start, Math.min(end, this.#fileSize));
    const data = this.#dataBytes(start, inFile);
    this.#usedData += data;
    this.#usedZero += inFile - start - data;
    this.#usedOverrun += end - inFile;
    this.#position = end;
  }

  /** The rest of the file is not used. */
  finish(): FileAllocation {
    this.#countUnused(this.#fileSize);
    const fileSize = this.#fileSize;
    const sum = this.#usedData + this.#usedZero + this.#unusedData + this.#unusedZero;
    assert(
      sum === fileSize,
      `${this.#storage.path}: the classes of its bytes add up to ${sum}, but it has ${fileSize}`,
    );
    return {
      fileSize,
      usedData: this.#usedData,
      usedZero: this.#usedZero,
      usedDiscarded: 0,
      usedOverrun: this.#usedOverrun,
      unusedData: this.#unusedData,
      unusedZero: this.#unusedZero,
      unusedDiscarded: 0,
    };
  }

  #countUnused(end: number): void {
    const start = this.#position;
    const inFile = Math.min(end, this.#fileSize);
    if (inFile <= start) return;
    const data = this.#dataBytes(start, inFile);
    this.#unusedData += data;
    this.#unusedZero += inFile - start - data;
    this.#position = inFile;
  }

  /** How much of a range the host stores, bytes. */
  #dataBytes(start: number, end: number): number {
    let data = 0;
    for (let at = start; at < end; ) {
      if (at >= this.#runEnd) {
        this.#storage.hostRun(at, this.#run);
        this.#runEnd = at + this.#run.length;
      }
      const stop = Math.min(end, this.#runEnd);
      if (this.#run.isData) data += stop - at;
      at = stop;
    }
    return data;
  }
}
