/**
 * Where the metadata of an image is, so that data is never written over it: a table that says so is
 * damaged or hostile. The header and the tables that it names are ranges; all others are clusters in a
 * hash set that all threads share:
 *
 *     double 0        clusters in the set
 *     double 1        the seed of its hashes
 *     double 2 + n    cluster index + 1, or 0
 *
 * It is filled at open and added to under the exclusive lock. Source: QEMU's overlap checks.
 */

import { hashOf, newHashSeed } from "../binary/seeded-hash.ts";

const COUNT = 0;
const SEED = 1;
const FIRST = 2;
/** Beyond this share of its places the set takes no more: lookups would get long. */
const LOAD_MAX = 0.75;

export function createMetadataSet(expected: number): SharedArrayBuffer {
  const places = 2 ** Math.ceil(Math.log2(Math.max(expected, 1) * 2 + 512));
  const memory = new SharedArrayBuffer((FIRST + places) * Float64Array.BYTES_PER_ELEMENT);
  new Float64Array(memory)[SEED] = newHashSeed();
  return memory;
}

/** A range of host clusters that holds one table. */
export interface MetadataRange {
  readonly name: string;
  readonly firstCluster: number;
  readonly clusters: number;
}

export class MetadataMap {
  readonly #table: Float64Array;
  readonly #places: number;
  readonly #shift: number;
  readonly #seed: number;
  /** What messages call a cluster of the set. */
  readonly #clusterName: string;
  /** The tables that are ranges; replaced when one moves. */
  ranges: readonly MetadataRange[] = [];

  constructor(memory: SharedArrayBuffer, clusterName: string) {
    this.#clusterName = clusterName;
    this.#table = new Float64Array(memory);
    this.#places = this.#table.length - FIRST;
    this.#shift = 32 - Math.log2(this.#places);
    this.#seed = this.#table[SEED] ?? 0;
  }

  /** Note a cluster; false if it was noted before. */
  add(cluster: number): boolean {
    const count = this.#table[COUNT] ?? 0;
    const place = this.#find(cluster);
    if (this.#table[place] === cluster + 1) return false;
    if (count >= this.#places * LOAD_MAX) return true;
    this.#table[place] = cluster + 1;
    this.#table[COUNT] = count + 1;
    return true;
  }

  /** Forget a cluster. What follows in its chain is put again. */
  remove(cluster: number): void {
    const table = this.#table;
    let place = this.#find(cluster);
    if (table[place] !== cluster + 1) return;
    table[place] = 0;
    table[COUNT] = (table[COUNT] ?? 0) - 1;
    for (;;) {
      place = FIRST + ((place - FIRST + 1) % this.#places);
      const moved = table[place] ?? 0;
      if (moved === 0) return;
      table[place] = 0;
      table[this.#find(moved - 1)] = moved;
    }
  }

  /** Whether a cluster was noted. */
  has(cluster: number): boolean {
    return this.#table[this.#find(cluster)] === cluster + 1;
  }

  /** What `clusters` clusters from `firstCluster` on would overwrite, or undefined. */
  overlap(firstCluster: number, clusters: number): string | undefined {
    const range = this.overlapOfRanges(firstCluster, clusters);
    if (range !== undefined) return range;
    for (let cluster = firstCluster; cluster < firstCluster + clusters; cluster++) {
      if (this.has(cluster)) return this.#clusterName;
    }
    return undefined;
  }

  /** As `overlap`, without the clusters of the set. */
  overlapOfRanges(firstCluster: number, clusters: number): string | undefined {
    for (let index = 0; index < this.ranges.length; index++) {
      const range = this.ranges[index];
      if (
        range !== undefined &&
        firstCluster < range.firstCluster + range.clusters &&
        range.firstCluster < firstCluster + clusters
      ) {
        return range.name;
      }
    }
    return undefined;
  }

  /** Where a cluster is in the set, or where it would be put. */
  #find(cluster: number): number {
    const table = this.#table;
    let place = FIRST + (hashOf(cluster, this.#seed) >>> this.#shift);
    while (table[place] !== 0 && table[place] !== cluster + 1) {
      place = FIRST + ((place - FIRST + 1) % this.#places);
    }
    return place;
  }
}
