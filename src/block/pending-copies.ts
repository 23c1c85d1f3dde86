/**
 * Copies of what a backing file has that are in the image's file, but that its tables do not refer to yet:
 * they wait until they are durable, many together, since data comes before its reference (native-notes/writing.md) and a
 * wait for the disk costs more than a read. What is lost with the daemon can be read again. Shared by
 * all threads; changed under the exclusive lock of the image, read under the shared one too.
 *
 *     word 0   the mutex of who links what waits
 *     word 1   runs
 *     word 2   runs that are being linked, the first ones: they do not grow any more
 *     word 3   1: the upkeep thread was asked to link
 *     double 0             bytes that wait
 *     4 doubles a run      first guest byte | byte after the last | host offset | kind
 */

import type { Extent } from "../formats/driver.ts";
import { EXTENT } from "../formats/driver.ts";
import type { WritePlan } from "../formats/writer.ts";
import { Mutex } from "../threads/mutex.ts";

/** Runs that wait, at the most. */
const RUNS_MAX = 1024;
/** Bytes that wait, at the most; of which half is enough to link them. */
const BYTES_MAX = 128 * 1024 * 1024;

const MUTEX_WORD = 0;
const RUNS_WORD = 1;
const LINKING_WORD = 2;
const WANTED_WORD = 3;
/**
 * From here on a filter, of one bit for each piece of the disk modulo their number: without the bits of a
 * range there is no run in it. Most ranges are found to be free of runs without a look at each.
 */
const FILTER_WORD = 4;
const FILTER_BITS = 8192;
const FILTER_PIECE = 64 * 1024;
const WORDS = FILTER_WORD + FILTER_BITS / 32;
const RUN_DOUBLES = 4;
/** Of each double of a run. */
const START = 0;
const END = 1;
const HOST = 2;
const KIND = 3;

/** What a run is. */
const KINDS = {
  /** At a place of its own, given back if it comes to nothing. */
  fresh: 0,
  /** At the place that its cluster has. */
  given: 1,
  /** Zeros in a run of another kind: to be told so when that is linked. */
  zeros: 2,
} as const;

/** Memory for the copies of one image. */
export function createPendingCopies(): SharedArrayBuffer {
  return new SharedArrayBuffer(
    WORDS * Int32Array.BYTES_PER_ELEMENT +
      (1 + RUNS_MAX * RUN_DOUBLES) * Float64Array.BYTES_PER_ELEMENT,
  );
}

export class PendingCopies {
  /** Of who links. Taken before the lock of the image. */
  readonly linking: Mutex;
  readonly #words: Int32Array;
  readonly #bytes: Float64Array;
  readonly #runs: Float64Array;

  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory, 0, WORDS);
    this.linking = new Mutex(this.#words, MUTEX_WORD);
    const doubles = WORDS * Int32Array.BYTES_PER_ELEMENT;
    this.#bytes = new Float64Array(memory, doubles, 1);
    this.#runs = new Float64Array(memory, doubles + Float64Array.BYTES_PER_ELEMENT);
  }

  /** Runs that wait. */
  get count(): number {
    return Atomics.load(this.#words, RUNS_WORD);
  }

  /** So much waits that it should be linked. */
  get isMuch(): boolean {
    return this.count >= RUNS_MAX / 2 || (this.#bytes[0] ?? 0) >= BYTES_MAX / 2;
  }

  /** Whether the upkeep thread must be asked to link: nobody did so since it last did. */
  takeWanted(): boolean {
    return this.isMuch && Atomics.exchange(this.#words, WANTED_WORD, 1) === 0;
  }

  /** Whether any run has a byte of a range. */
  overlaps(start: number, end: number): boolean {
    if (!this.#mayOverlap(start, end)) return false;
    const runs = this.#runs;
    for (let at = 0, stop = this.count * RUN_DOUBLES; at < stop; at += RUN_DOUBLES) {
      if ((runs[at + START] ?? 0) < end && start < (runs[at + END] ?? 0)) return true;
    }
    return false;
  }

  /** Make an extent that the tables say is unallocated what it is with the copies. */
  resolve(guestOffset: number, extent: Extent): void {
    const runs = this.#runs;
    let end = guestOffset + extent.length;
    if (!this.#mayOverlap(guestOffset, end)) return;
    for (let at = 0, stop = this.count * RUN_DOUBLES; at < stop; at += RUN_DOUBLES) {
      const start = runs[at + START] ?? 0;
      if (start >= end || (runs[at + END] ?? 0) <= guestOffset) continue;
      if (runs[at + KIND] === KINDS.zeros) continue;
      if (start <= guestOffset) {
        extent.kind = EXTENT.data;
        extent.hostOffset = (runs[at + HOST] ?? 0) + guestOffset - start;
        extent.length = Math.min(extent.length, (runs[at + END] ?? 0) - guestOffset);
        return;
      }
      end = start;
    }
    extent.length = end - guestOffset;
  }

  /** Add what a plan covers, filled. Returns false if it is full. */
  add(plan: WritePlan): boolean {
    const { coverStart, coverEnd, hostOffset, fresh } = plan;
    return this.#add(coverStart, coverEnd, hostOffset, fresh ? KINDS.fresh : KINDS.given);
  }

  /** What was just added, while the lock is held, has zeros there. Forgotten if it is full. */
  addZeros(start: number, end: number): void {
    this.#add(start, end, 0, KINDS.zeros);
  }

  #add(start: number, end: number, host: number, kind: number): boolean {
    const runs = this.#runs;
    const count = this.count;
    const bytes = kind === KINDS.zeros ? 0 : end - start;
    if ((this.#bytes[0] ?? 0) + bytes > BYTES_MAX && count > 0) return false;
    const stop = count * RUN_DOUBLES;
    // A run that ends here goes on.
    const grows = start > 0 && this.#mayOverlap(start - 1, start);
    let at = grows ? Atomics.load(this.#words, LINKING_WORD) * RUN_DOUBLES : stop;
    this.#addToFilter(start, end);
    for (; at < stop; at += RUN_DOUBLES) {
      if (runs[at + END] !== start || runs[at + KIND] !== kind) continue;
      if (kind !== KINDS.zeros && (runs[at + HOST] ?? 0) + start - (runs[at + START] ?? 0) !== host)
        continue;
      runs[at + END] = end;
      this.#bytes[0] = (this.#bytes[0] ?? 0) + bytes;
      return true;
    }
    if (count === RUNS_MAX) return false;
    runs[at + START] = start;
    runs[at + END] = end;
    runs[at + HOST] = host;
    runs[at + KIND] = kind;
    this.#bytes[0] = (this.#bytes[0] ?? 0) + bytes;
    Atomics.store(this.#words, RUNS_WORD, count + 1);
    return true;
  }

  #mayOverlap(start: number, end: number): boolean {
    const words = this.#words;
    const last = Math.ceil(end / FILTER_PIECE);
    let piece = Math.floor(start / FILTER_PIECE);
    if (last - piece >= FILTER_BITS) return this.count > 0;
    for (; piece < last; piece++) {
      const bit = piece % FILTER_BITS;
      if (((words[FILTER_WORD + (bit >>> 5)] ?? 0) & (1 << (bit & 31))) !== 0) return true;
    }
    return false;
  }

  #addToFilter(start: number, end: number): void {
    const words = this.#words;
    const last = Math.ceil(end / FILTER_PIECE);
    for (let piece = Math.floor(start / FILTER_PIECE); piece < last; piece++) {
      const bit = piece % FILTER_BITS;
      const at = FILTER_WORD + (bit >>> 5);
      words[at] = (words[at] ?? 0) | (1 << (bit & 31));
    }
  }

  #renewFilter(): void {
    const runs = this.#runs;
    this.#words.fill(0, FILTER_WORD);
    for (let at = 0, stop = this.count * RUN_DOUBLES; at < stop; at += RUN_DOUBLES) {
      this.#addToFilter(runs[at + START] ?? 0, runs[at + END] ?? 0);
    }
  }

  /** From now on the runs that there are do not grow. */
  startLinking(): void {
    Atomics.store(this.#words, WANTED_WORD, 0);
    Atomics.store(this.#words, LINKING_WORD, this.count);
  }

  /** How many runs `startLinking` saw: the first ones. */
  get linkable(): number {
    return Atomics.load(this.#words, LINKING_WORD);
  }

  /** Whether a run is only zeros in another one. */
  isZeros(index: number): boolean {
    return this.#runs[index * RUN_DOUBLES + KIND] === KINDS.zeros;
  }

  /** A run as a plan to link. */
  load(index: number, plan: WritePlan): void {
    const runs = this.#runs;
    const at = index * RUN_DOUBLES;
    plan.coverStart = runs[at + START] ?? 0;
    plan.coverEnd = runs[at + END] ?? 0;
    plan.hostOffset = runs[at + HOST] ?? 0;
    plan.fresh = runs[at + KIND] === KINDS.fresh;
    plan.replaces = 0;
  }

  /** From now on zeros in the runs that are being linked are data like the rest. */
  forgetZeros(): void {
    const runs = this.#runs;
    for (let at = 0, stop = this.linkable * RUN_DOUBLES; at < stop; at += RUN_DOUBLES) {
      if (runs[at + KIND] === KINDS.zeros) runs.fill(0, at + START, at + END + 1);
    }
  }

  /** A run stays where it is also if it comes to nothing. */
  keepPlace(index: number): void {
    if (index < this.linkable && !this.isZeros(index)) {
      this.#runs[index * RUN_DOUBLES + KIND] = KINDS.given;
    }
  }

  /** Whether any run that is being linked is only zeros in others. */
  hasLinkableZeros(): boolean {
    for (let index = 0; index < this.linkable; index++) if (this.isZeros(index)) return true;
    return false;
  }

  /** The first runs, of those that are being linked, do not wait any more. */
  remove(linked: number): void {
    const count = this.count;
    const runs = this.#runs;
    for (let index = 0; index < linked; index++) {
      const at = index * RUN_DOUBLES;
      if (this.isZeros(index)) continue;
      this.#bytes[0] = (this.#bytes[0] ?? 0) - ((runs[at + END] ?? 0) - (runs[at + START] ?? 0));
    }
    runs.copyWithin(0, linked * RUN_DOUBLES, count * RUN_DOUBLES);
    Atomics.store(this.#words, RUNS_WORD, count - linked);
    Atomics.sub(this.#words, LINKING_WORD, linked);
    this.#renewFilter();
  }

  /** What was not removed goes on waiting. */
  stopLinking(): void {
    Atomics.store(this.#words, LINKING_WORD, 0);
  }
}
