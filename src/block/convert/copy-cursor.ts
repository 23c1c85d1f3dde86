/**
 * Where the threads are that copy a disk together: each takes the next piece from here. One block of shared
 * memory:
 *
 *     word 0       the mutex of all that follows
 *     word 1       1: no piece is given out any more
 *     double 0     the first byte that nobody has taken
 *     double 1     where the run ends that it is in, if it is known
 *     double 2     what that run is
 */

import { Mutex } from "../../threads/mutex.ts";
import type { SourceDisks } from "./source-disks.ts";
import { SOURCE, type SourceKind, SourceRun } from "./source-disks.ts";

const MUTEX = 0;
const STOP = 1;
const WORDS = 2;
const POSITION = 0;
const RUN_END = 1;
const RUN_KIND = 2;
const NUMBERS = 3;

/** Adjacent runs of data are joined up to this many bytes, and this many runs, before they are given out. */
const JOINED_MAX = 64 * 1024 * 1024;
const JOINED_RUNS_MAX = 1024;
/** Runs that need no work are passed over so many at a time: then whoever waits for the thread gets a turn. */
const PASSED_MAX = 4096;
/** Zeros are written in pieces of this many bytes at the most. */
const ZEROS_MAX = 1024 * 1024 * 1024;

/** Memory for threads that copy a disk together, from its start on. */
export function createCopyCursor(): SharedArrayBuffer {
  return new SharedArrayBuffer(
    WORDS * Int32Array.BYTES_PER_ELEMENT + NUMBERS * Float64Array.BYTES_PER_ELEMENT,
  );
}

/** A piece of the disk that one thread copies. Made once and overwritten. */
export class CopyPiece {
  kind: SourceKind = SOURCE.data;
  offset = 0;
  /** Bytes; 0: nothing to do for now, ask again. */
  length = 0;
}

/** What decides about pieces. */
export interface CopyRules {
  /** Bytes of the source before what is copied. */
  readonly skip: number;
  /** Bytes of the disk that are copied, from its start on. */
  readonly size: number;
  /** Pieces of data have so many bytes at the most, and end at a multiple of it. */
  readonly pieceSize: number;
  /** Pieces start and end at multiples of this many bytes, whatever they are then. */
  readonly alignment: number;
  /** What the top image lacks is left out. */
  readonly topOnly: boolean;
  /** Zeros are left out. */
  readonly skipsZeros: boolean;
  /** What cannot be looked up is tried to be read. */
  readonly salvage: boolean;
}

export class CopyCursor {
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;
  readonly #mutex: Mutex;
  readonly #sources: SourceDisks;
  readonly #rules: CopyRules;
  readonly #run = new SourceRun();

  constructor(memory: SharedArrayBuffer, sources: SourceDisks, rules: CopyRules) {
    this.#words = new Int32Array(memory, 0, WORDS);
    this.#numbers = new Float64Array(memory, WORDS * Int32Array.BYTES_PER_ELEMENT, NUMBERS);
    this.#mutex = new Mutex(this.#words, MUTEX);
    this.#sources = sources;
    this.#rules = rules;
  }

  /** Bytes from the start of the disk on that were given out. */
  get position(): number {
    return this.#numbers[POSITION] ?? 0;
  }

  /** No more pieces, for any thread. */
  stop(): void {
    Atomics.store(this.#words, STOP, 1);
  }

  /**
   * Take the next piece.
   *
   * @returns false: there are no more
   * @throws {CorruptionError | StorageError} the source's tables cannot be right, or read
   */
  take(out: CopyPiece): boolean {
    this.#mutex.lock();
    try {
      return this.#take(out);
    } finally {
      this.#mutex.unlock();
    }
  }

  #take(out: CopyPiece): boolean {
    const numbers = this.#numbers;
    const { size, skipsZeros } = this.#rules;
    out.length = 0;
    for (let passed = 0; passed < PASSED_MAX; passed++) {
      const position = numbers[POSITION] ?? 0;
      if (position >= size || Atomics.load(this.#words, STOP) !== 0) return false;
      if (position >= (numbers[RUN_END] ?? 0)) this.#look(position);
      const end = numbers[RUN_END] ?? 0;
      const kind = numbers[RUN_KIND];
      if (kind === SOURCE.backing || (kind === SOURCE.zero && skipsZeros)) {
        numbers[POSITION] = end;
        continue;
      }
      out.kind = kind === SOURCE.zero ? SOURCE.zero : SOURCE.data;
      out.offset = position;
      out.length = this.#pieceEnd(position, end, out.kind) - position;
      numbers[POSITION] = position + out.length;
      return true;
    }
    return true;
  }

  #pieceEnd(position: number, end: number, kind: SourceKind): number {
    if (kind === SOURCE.zero) return Math.min(end, position + ZEROS_MAX);
    const { pieceSize } = this.#rules;
    return Math.min(end, position - (position % pieceSize) + pieceSize);
  }

  /** Find out about the run at a position. */
  #look(position: number): void {
    const run = this.#run;
    this.#runAt(position);
    const { kind } = run;
    let end = position + run.length;
    for (let runs = 1; runs < JOINED_RUNS_MAX; runs++) {
      if (end >= this.#rules.size || end - position >= JOINED_MAX) break;
      this.#runAt(end);
      if (run.kind !== kind) break;
      end += run.length;
    }
    this.#setRun(position, end, kind);
  }

  /** What is there for less than a unit that is copied as a whole is copied with what is around it. */
  #setRun(position: number, end: number, kind: SourceKind): void {
    const { alignment, size } = this.#rules;
    const aligned = end >= size ? size : end - (end % alignment);
    const isWhole = aligned > position;
    this.#numbers[RUN_KIND] = isWhole ? kind : SOURCE.data;
    this.#numbers[RUN_END] = isWhole ? aligned : Math.min(position + alignment, size);
  }

  #runAt(offset: number): void {
    const { skip, size, topOnly, salvage } = this.#rules;
    const run = this.#run;
    try {
      this.#sources.runAt(skip + offset, size - offset, topOnly, run);
    } catch (error) {
      if (!salvage) throw error;
      run.kind = SOURCE.data;
      run.length = Math.min(this.#sources.restOfCluster(skip + offset), size - offset);
    }
  }
}
