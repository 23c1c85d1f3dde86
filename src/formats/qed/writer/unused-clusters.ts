/**
 * Clusters before others in use that nothing refers to, as extents: the last one is used first. All under the
 * exclusive lock of the image.
 */

/** Extents of one kind that are remembered, at the most. */
export const EXTENTS_MAX = 256;
/** Doubles that they take: how many extents, then the first cluster and the count of each. */
export const UNUSED_DOUBLES = 1 + EXTENTS_MAX * 2;

export class UnusedClusters {
  /** The first cluster of what `take` took. */
  taken = 0;
  readonly #doubles: Float64Array;

  /** @param doubles shared by all threads: UNUSED_DOUBLES of them */
  constructor(doubles: Float64Array) {
    this.#doubles = doubles;
  }

  /** How many there are extents of. */
  get extents(): number {
    return this.#doubles[0] ?? 0;
  }

  /** Remember adjacent clusters; false if there is no room for that. */
  add(first: number, count: number): boolean {
    const doubles = this.#doubles;
    const { extents } = this;
    const last = extents * 2 - 1;
    if (extents > 0 && first === (doubles[last] ?? 0) + (doubles[last + 1] ?? 0)) {
      doubles[last + 1] = (doubles[last + 1] ?? 0) + count;
      return true;
    }
    if (extents === EXTENTS_MAX) return false;
    doubles[last + 2] = first;
    doubles[last + 3] = count;
    doubles[0] = extents + 1;
    return true;
  }

  /**
   * Take up to `wanted` adjacent clusters; `taken` is the first.
   *
   * @returns how many; 0: none are left
   */
  take(wanted: number): number {
    const doubles = this.#doubles;
    const { extents } = this;
    if (extents === 0) return 0;
    const last = extents * 2 - 1;
    const available = doubles[last + 1] ?? 0;
    const count = Math.min(wanted, available);
    // Upwards, so that what is written in a row stays so.
    this.taken = doubles[last] ?? 0;
    doubles[last] = this.taken + count;
    doubles[last + 1] = available - count;
    if (count === available) doubles[0] = extents - 1;
    return count;
  }

  /** All of them, the first clusters of extents and their counts. */
  *[Symbol.iterator](): Generator<{ first: number; count: number }> {
    for (let at = 1; at < this.extents * 2; at += 2) {
      yield { first: this.#doubles[at] ?? 0, count: this.#doubles[at + 1] ?? 0 };
    }
  }
}
