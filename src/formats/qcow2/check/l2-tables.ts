/**
 * The L2 tables of all trees, each once, with the number of L1 entries that name it: a hash table in
 * typed arrays. However often a table is named, it is read once.
 */

import { hashOf, newHashSeed } from "../../../binary/seeded-hash.ts";
import { UnsupportedError } from "../../../errors.ts";

/** Our limits: twice what the largest L1 table names; and of tables at offsets where none can be. */
const TABLES_MAX = 2 ** 23;
const UNALIGNED_MAX = 1024;

/** Places at first: a power of two. */
const PLACES_BITS = 10;
/** Beyond this share of its places the table grows: lookups would get long. */
const LOAD_MAX = 0.5;
/** Offsets are multiples of it, bytes. */
const UNIT = 512;

export class L2Tables {
  readonly #path: string;
  readonly #clusterSize: number;
  /** Host offset + 1, or 0: a free place. */
  #keys = new Float64Array(2 ** PLACES_BITS);
  #active = new Float64Array(2 ** PLACES_BITS);
  #total = new Float64Array(2 ** PLACES_BITS);
  /** What is left of 32 bits when one place is chosen. */
  #shift = 32 - PLACES_BITS;
  readonly #seed = newHashSeed();
  #sorted: Float64Array | undefined;
  #count = 0;
  #unaligned = 0;

  constructor(path: string, clusterSize: number) {
    this.#path = path;
    this.#clusterSize = clusterSize;
  }

  /**
   * Note that L1 entries name the table at `offset`.
   *
   * @param active how many of the active L1 table
   * @param total how many of all L1 tables
   * @throws {UnsupportedError} there are more tables than the limit
   */
  add(offset: number, active: number, total: number): void {
    let place = this.#find(offset);
    if (this.#keys[place] === 0) {
      if (this.#count + 1 > this.#keys.length * LOAD_MAX) {
        this.#grow();
        place = this.#find(offset);
      }
      this.#limit(offset);
      this.#keys[place] = offset + 1;
      this.#count++;
      this.#sorted = undefined;
    }
    this.#active[place] = (this.#active[place] ?? 0) + active;
    this.#total[place] = (this.#total[place] ?? 0) + total;
  }

  /** L1 entries of the active table that name it. */
  activeAt(offset: number): number {
    return this.#active[this.#find(offset)] ?? 0;
  }

  /** L1 entries of all tables that name it. */
  totalAt(offset: number): number {
    return this.#total[this.#find(offset)] ?? 0;
  }

  /** The host offsets of all tables, from the lowest on. */
  inOrder(): Float64Array {
    this.#sorted ??= this.#sort();
    return this.#sorted;
  }

  #sort(): Float64Array {
    const offsets = new Float64Array(this.#count);
    let next = 0;
    for (const key of this.#keys) {
      if (key !== 0) offsets[next++] = key - 1;
    }
    return offsets.sort();
  }

  /** The place of a table, or the free one where it belongs. */
  #find(offset: number): number {
    const keys = this.#keys;
    let place = hashOf(offset / UNIT, this.#seed) >>> this.#shift;
    while (keys[place] !== 0 && keys[place] !== offset + 1) place = (place + 1) % keys.length;
    return place;
  }

  #grow(): void {
    const [keys, active, total] = [this.#keys, this.#active, this.#total];
    const places = keys.length * 2;
    this.#keys = new Float64Array(places);
    this.#active = new Float64Array(places);
    this.#total = new Float64Array(places);
    this.#shift--;
    for (const [from, key] of keys.entries()) {
      if (key === 0) continue;
      const place = this.#find(key - 1);
      this.#keys[place] = key;
      this.#active[place] = active[from] ?? 0;
      this.#total[place] = total[from] ?? 0;
    }
  }

  #limit(offset: number): void {
    if (offset % this.#clusterSize !== 0) this.#unaligned++;
    if (this.#count < TABLES_MAX && this.#unaligned <= UNALIGNED_MAX) return;
    const reason =
      this.#unaligned > UNALIGNED_MAX
        ? `more than ${UNALIGNED_MAX} L2 tables are not cluster aligned: too damaged to be checked`
        : `has more L2 tables than the limit of ${TABLES_MAX}`;
    throw new UnsupportedError(this.#path, reason);
  }
}
