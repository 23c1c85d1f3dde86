/**
 * What the threads that write to a QED image share: one block of memory.
 *
 * Words, by Atomics, besides those of all formats:
 *     NEED_CHECK       1: the need-check bit is set, durably, and is cleared at the end
 *     TAIL_CHECKED     1: nothing is allocated behind the end of the disk
 *     GAPS_CLEAR       1: the gaps read as zeros, durably
 *
 * Doubles, under the exclusive lock of the image:
 *     the sizes, and where the reserved clusters are
 *     GAPS             unused clusters that were there at open
 *     GIVEN_UP         unused clusters that this session took and did not link: they may hold anything
 */

import { FORMAT_WORD, SharedWords, WRITER_WORD } from "../../shared-words.ts";
import { UNUSED_DOUBLES } from "./unused-clusters.ts";

export const WORD = {
  ...WRITER_WORD,
  needCheck: FORMAT_WORD,
  tailChecked: FORMAT_WORD + 1,
  gapsClear: FORMAT_WORD + 2,
} as const;
const WORDS = 16;

export const NUMBER = {
  virtualSize: 0,
  /** Clusters of the file that tables may refer to: they are there, durably. */
  fileClusters: 1,
  /** The first reserved cluster that was not taken yet; none behind it is in use. */
  nextCluster: 2,
  /** The first cluster that is not reserved; not below `nextCluster`. */
  reservedEnd: 3,
  /** Clusters that were there after the last reservation. */
  lastReservation: 4,
  /** Clusters that this session has taken. */
  taken: 5,
  /** Clusters of data that were in use at open. */
  usedAtOpen: 6,
  /** The file is not cut before this cluster. */
  keptClusters: 7,
} as const;
const NUMBERS = 16;

export class SharedState extends SharedWords {
  readonly gaps: Float64Array;
  readonly givenUp: Float64Array;

  constructor(memory: SharedArrayBuffer) {
    super(memory, { words: WORDS, numbers: NUMBERS });
    let at = this.numbers.byteOffset + this.numbers.byteLength;
    const doubles = (count: number): Float64Array => {
      const array = new Float64Array(memory, at, count);
      at += count * Float64Array.BYTES_PER_ELEMENT;
      return array;
    };
    this.gaps = doubles(UNUSED_DOUBLES);
    this.givenUp = doubles(UNUSED_DOUBLES);
  }
}

/** Memory for the state of one image. */
export function createSharedState(): SharedArrayBuffer {
  return new SharedArrayBuffer(
    WORDS * Int32Array.BYTES_PER_ELEMENT +
      (NUMBERS + 2 * UNUSED_DOUBLES) * Float64Array.BYTES_PER_ELEMENT,
  );
}
