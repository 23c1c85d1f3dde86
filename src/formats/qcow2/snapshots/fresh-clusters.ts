/**
 * Host clusters for structures that are written before anything refers to them. They stay free in the
 * refcounts that are in force, so that whatever comes of it, nothing is leaked: only the refcounts that
 * take effect together with the structures count them. Under the structure mutex.
 */

import { hex, StorageError } from "../../../errors.ts";
import type { WritableStorage } from "../../../storage/storage.ts";
import type { MetadataMap } from "../../metadata-map.ts";
import type { ClusterRun, RefcountStore } from "../writer/refcount-store.ts";

/** Free clusters are looked for so many at a time. */
const SEARCH = 4096;

export interface FreshClustersContext {
  readonly clusterSize: number;
  readonly storage: WritableStorage;
  readonly refcounts: RefcountStore;
  readonly metadata: MetadataMap;
  /** No cluster below this one is free. */
  readonly freeHint: number;
  /** Notes that the image is corrupt, and throws. */
  readonly markCorrupt: (reason: string) => never;
}

export class FreshClusters {
  readonly #context: FreshClustersContext;
  /** What was taken, by rising clusters. */
  readonly #taken: { first: number; count: number }[] = [];
  /** What is looked at next. */
  #cursor: number;
  /** Free clusters that were found and not taken yet. */
  #found: ClusterRun = { first: 0, count: 0 };
  /** Bytes of the file before anything was taken. */
  readonly #length: number;

  constructor(context: FreshClustersContext) {
    this.#context = context;
    this.#cursor = context.freeHint;
    this.#length = context.storage.currentLength();
  }

  /**
   * Take adjacent clusters. What they hold is rubbish; the file may end before them.
   *
   * @param count > 0
   * @returns the first one
   * @throws {StorageError} ENOSPC or EFBIG: there are none
   */
  take(count: number): number {
    while (this.#found.count < count) this.#search();
    const { first } = this.#found;
    this.#found = { first: first + count, count: this.#found.count - count };
    const { clusterSize, metadata, markCorrupt } = this.#context;
    const what = metadata.overlap(first, count);
    if (what !== undefined) {
      markCorrupt(`a cluster at or after ${hex(first * clusterSize)} is free and ${what}`);
    }
    const last = this.#taken.at(-1);
    if (last !== undefined && last.first + last.count === first) last.count += count;
    else this.#taken.push({ first, count });
    return first;
  }

  /** Whether a cluster was taken. */
  has(cluster: number): boolean {
    let [low, high] = [0, this.#taken.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      const run = this.#taken[middle];
      if (run !== undefined && cluster >= run.first + run.count) low = middle + 1;
      else high = middle;
    }
    const run = this.#taken[low];
    return run !== undefined && cluster >= run.first;
  }

  /** Make the file long enough for all of them. */
  extendFile(): void {
    const { storage, clusterSize } = this.#context;
    const last = this.#taken.at(-1);
    const end = last === undefined ? 0 : (last.first + last.count) * clusterSize;
    if (storage.resizable && storage.currentLength() < end) storage.setLength(end);
  }

  /** Nothing came of it: their space goes back to the host. */
  giveUp(): void {
    const { storage, clusterSize } = this.#context;
    for (const { first, count } of this.#taken) {
      storage.zeroAt(first * clusterSize, count * clusterSize, "release");
    }
    if (storage.resizable && storage.currentLength() > this.#length) {
      storage.setLength(this.#length);
    }
  }

  /** Look further: what is found joins what was found before, if it follows, or takes its place. */
  #search(): void {
    const { refcounts } = this.#context;
    const covered = refcounts.table.entries * refcounts.entriesPerBlock;
    // Behind what the refcount table counts, all is free: the new one counts more.
    const runs =
      this.#cursor < covered
        ? refcounts.findFree(this.#cursor, SEARCH, 1)
        : [{ first: this.#cursor, count: SEARCH }];
    const [{ first, count: found } = { first: covered, count: 0 }] = runs;
    const count = Math.min(found, this.#requirePlace(first));
    this.#cursor = first + count;
    const end = this.#found.first + this.#found.count;
    this.#found =
      end === first
        ? { first: this.#found.first, count: this.#found.count + count }
        : { first, count };
  }

  /** Returns how many clusters the file can have from one on. */
  #requirePlace(first: number): number {
    const { storage, clusterSize } = this.#context;
    if (storage.resizable) return Number.POSITIVE_INFINITY;
    const room = Math.floor(storage.length / clusterSize) - first;
    if (room > 0) return room;
    const reason = `no free clusters are left on this device of ${storage.length} bytes`;
    throw new StorageError("ENOSPC", storage.path, reason);
  }
}
