/** Clusters that are reserved: counted as used, durably, read as zeros, and nothing refers to them. */

import type { ClusterRun } from "./refcount-store.ts";
import { NUMBER, RESERVED_MAX, type SharedState } from "./shared-state.ts";

/** All under the exclusive lock of the image, but for what says otherwise. */
export class Reservation {
  /** The first cluster of what `take` took. */
  taken = 0;
  readonly #state: SharedState;

  constructor(state: SharedState) {
    this.#state = state;
  }

  /** Clusters that are left; without the lock, as of lately. */
  get clusters(): number {
    return this.#state.get(NUMBER.reservedClusters);
  }

  /** Less than half is left of what was reserved last. */
  get isLow(): boolean {
    return this.clusters < this.#state.get(NUMBER.lastReservation) / 2;
  }

  /** Extents that could be added; without the lock, as of lately. */
  get room(): number {
    return RESERVED_MAX - this.#state.get(NUMBER.reservedExtents);
  }

  /**
   * Take up to `wanted` adjacent clusters; `taken` is the first.
   *
   * @returns how many; 0: none are left
   */
  take(wanted: number): number {
    const { reserved } = this.#state;
    const available = reserved[1] ?? 0;
    const count = Math.min(wanted, available);
    if (count === 0) return 0;
    this.taken = reserved[0] ?? 0;
    reserved[0] = this.taken + count;
    reserved[1] = available - count;
    if (available === count) this.#dropFirstExtent();
    this.#state.set(NUMBER.reservedClusters, this.clusters - count);
    this.#state.set(NUMBER.taken, this.#state.get(NUMBER.taken) + count);
    return count;
  }

  /** Add what a reservation has made available. */
  add(runs: readonly ClusterRun[]): void {
    const state = this.#state;
    let extents = state.get(NUMBER.reservedExtents);
    let clusters = 0;
    for (const { first, count } of runs) {
      state.reserved[extents * 2] = first;
      state.reserved[extents * 2 + 1] = count;
      extents++;
      clusters += count;
    }
    state.set(NUMBER.reservedExtents, extents);
    state.set(NUMBER.reservedClusters, this.clusters + clusters);
    state.set(NUMBER.lastReservation, clusters);
  }

  /** Take all that is left. */
  takeAll(): ClusterRun[] {
    const runs: ClusterRun[] = [];
    for (let count = this.take(Number.MAX_SAFE_INTEGER); count > 0; ) {
      runs.push({ first: this.taken, count });
      count = this.take(Number.MAX_SAFE_INTEGER);
    }
    return runs;
  }

  #dropFirstExtent(): void {
    const { reserved } = this.#state;
    const extents = this.#state.get(NUMBER.reservedExtents) - 1;
    reserved.copyWithin(0, 2, (extents + 1) * 2);
    reserved[extents * 2] = 0;
    reserved[extents * 2 + 1] = 0;
    this.#state.set(NUMBER.reservedExtents, extents);
  }
}
