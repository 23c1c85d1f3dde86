/**
 * Clusters before others in use that nothing refers to: taken and not linked in the end, or left behind by a
 * writer that was stopped. They may hold anything, and are used again one at a time, for what is written as
 * a whole and made durable before it is linked. All under the exclusive lock of the image.
 */

import { GIVEN_UP_MAX, NUMBER, type SharedState } from "./shared-state.ts";

export class GivenUpClusters {
  readonly #state: SharedState;

  constructor(state: SharedState) {
    this.#state = state;
  }

  /** Remember adjacent clusters; false if there is no room for that. */
  add(first: number, count: number): boolean {
    const { givenUp } = this.#state;
    const extents = this.#state.get(NUMBER.givenUpExtents);
    const last = (extents - 1) * 2;
    if (extents > 0 && first === (givenUp[last] ?? 0) + (givenUp[last + 1] ?? 0)) {
      givenUp[last + 1] = (givenUp[last + 1] ?? 0) + count;
      return true;
    }
    if (extents === GIVEN_UP_MAX) return false;
    givenUp[last + 2] = first;
    givenUp[last + 3] = count;
    this.#state.set(NUMBER.givenUpExtents, extents + 1);
    return true;
  }

  /** Take one of them: the cluster, or -1 if there is none. */
  take(): number {
    const { givenUp } = this.#state;
    const extents = this.#state.get(NUMBER.givenUpExtents);
    if (extents === 0) return -1;
    const last = (extents - 1) * 2;
    const cluster = givenUp[last] ?? 0;
    const left = (givenUp[last + 1] ?? 0) - 1;
    // Upwards, so that what is written in a row stays so.
    givenUp[last] = cluster + 1;
    givenUp[last + 1] = left;
    if (left === 0) this.#state.set(NUMBER.givenUpExtents, extents - 1);
    return cluster;
  }
}
