/**
 * Clusters that lose a reference. What a change of tables frees is collected by the thread, published to
 * all when the tables are written, and taken from the queue when that is durable.
 */

import type { ClusterRun } from "./refcount-store.ts";
import { FREES_MAX, type SharedState, WORD } from "./shared-state.ts";

/** Runs that one change of tables frees, at the most: one for each entry of a slice, and some. */
const PENDING_MAX = 1024;

export class FreeQueue {
  readonly #state: SharedState;
  /** Frees that are not in the queue yet, since the tables still refer to them: first cluster, count. */
  readonly #pending = new Float64Array(PENDING_MAX * 2);
  #pendingRuns = 0;

  constructor(state: SharedState) {
    this.#state = state;
  }

  /** Whether the queue takes `runs` more. */
  hasRoom(runs: number): boolean {
    const { words } = this.#state;
    if (this.#state.isSet(WORD.syncFailed)) return true;
    const queued = (Atomics.load(words, WORD.freesHead) - Atomics.load(words, WORD.freesTail)) | 0;
    return queued + runs <= FREES_MAX;
  }

  /**
   * One reference less for each cluster of a run, from `publish` on. Under the exclusive lock.
   */
  add(first: number, count: number): void {
    const pending = this.#pending;
    const last = (this.#pendingRuns - 1) * 2;
    if (last >= 0 && first === (pending[last] ?? 0) + (pending[last + 1] ?? 0)) {
      pending[last + 1] = (pending[last + 1] ?? 0) + count;
      return;
    }
    pending[last + 2] = first;
    pending[last + 3] = count;
    this.#pendingRuns++;
  }

  /** The tables do not refer to what was freed any more: they are written. */
  publish(): void {
    const { words, frees } = this.#state;
    const runs = this.#pendingRuns;
    if (runs === 0) return;
    if (this.#state.isSet(WORD.syncFailed) || !this.hasRoom(runs)) {
      this.forget();
      return;
    }
    const head = Atomics.load(words, WORD.freesHead);
    for (let run = 0; run < runs; run++) {
      const at = ((head + run) & (FREES_MAX - 1)) * 2;
      frees[at] = this.#pending[run * 2] ?? 0;
      frees[at + 1] = this.#pending[run * 2 + 1] ?? 0;
    }
    this.#pendingRuns = 0;
    Atomics.store(words, WORD.freesHead, (head + runs) | 0);
  }

  /** Nobody knows whether tables refer to it: it stays counted, perhaps for nothing. */
  forget(): void {
    this.#state.raise(WORD.leaks);
    this.#pendingRuns = 0;
  }

  /** True if clusters wait to be freed. */
  hasAny(): boolean {
    const { words } = this.#state;
    return Atomics.load(words, WORD.freesHead) !== Atomics.load(words, WORD.freesTail);
  }

  /** Where the queue ends: what is before was unlinked by writes that came before. */
  mark(): number {
    return Atomics.load(this.#state.words, WORD.freesHead);
  }

  /** What was before a mark is durably unlinked. Returns whether anything can be freed. */
  markDurable(mark: number): boolean {
    const { words } = this.#state;
    let durable = Atomics.load(words, WORD.freesDurable);
    while (((mark - durable) | 0) > 0) {
      const seen = Atomics.compareExchange(words, WORD.freesDurable, durable, mark);
      if (seen === durable) break;
      durable = seen;
    }
    return Atomics.load(words, WORD.freesDurable) !== Atomics.load(words, WORD.freesTail);
  }

  /** Take what is durably unlinked, by rising clusters. Under the structure mutex. */
  takeDurable(): ClusterRun[] {
    const { words, frees } = this.#state;
    const durable = Atomics.load(words, WORD.freesDurable);
    const runs: ClusterRun[] = [];
    for (let at = Atomics.load(words, WORD.freesTail); at !== durable; at = (at + 1) | 0) {
      const index = (at & (FREES_MAX - 1)) * 2;
      runs.push({ first: frees[index] ?? 0, count: frees[index + 1] ?? 0 });
    }
    Atomics.store(words, WORD.freesTail, durable);
    return joinNeighbours(runs.sort((a, b) => a.first - b.first));
  }
}

/** Runs that follow each other become one; those that overlap lose a reference each, and stay apart. */
function joinNeighbours(runs: readonly ClusterRun[]): ClusterRun[] {
  const joined: { first: number; count: number }[] = [];
  for (const { first, count } of runs) {
    const last = joined.at(-1);
    if (last !== undefined && last.first + last.count === first) last.count += count;
    else joined.push({ first, count });
  }
  return joined;
}
