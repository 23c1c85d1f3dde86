/**
 * How many references there are to each host cluster: numbers in chunks, which exist where something
 * is referred to, and are as wide as their largest number needs.
 */

import { UnsupportedError } from "../../../errors.ts";

type Chunk = Uint8Array | Uint16Array | Uint32Array | Float64Array;

/** Clusters of a chunk. */
const CHUNK = 4096;

/** Our limit, bytes: 64 TiB of clusters of 64 KiB, each referred to by at most 255. */
const MEMORY_MAX = 2 ** 30;

export class ReferenceCounts {
  readonly #path: string;
  readonly #chunks: (Chunk | undefined)[] = [];
  #memory = 0;
  /** One more than the highest cluster that is looked at: in the file, or referred to. */
  clusters: number;

  /** @param clusters of the file */
  constructor(path: string, clusters: number) {
    this.#path = path;
    this.clusters = clusters;
  }

  get(cluster: number): number {
    return this.#chunks[Math.floor(cluster / CHUNK)]?.[cluster % CHUNK] ?? 0;
  }

  /**
   * @param references may be negative
   * @throws {UnsupportedError} the limit of memory is reached
   */
  add(cluster: number, references: number): void {
    const index = Math.floor(cluster / CHUNK);
    let chunk = this.#chunks[index] ?? this.#replace(index, new Uint8Array(CHUNK));
    const sum = (chunk[cluster % CHUNK] ?? 0) + references;
    while (sum > maxOf(chunk)) chunk = this.#replace(index, wider(chunk));
    chunk[cluster % CHUNK] = sum;
    if (cluster >= this.clusters) this.clusters = cluster + 1;
  }

  /** The first cluster from `start` on, and before `end`, that has references; Infinity: there is none. */
  nextReferenced(start: number, end = this.clusters): number {
    let cluster = start;
    while (cluster < end) {
      const chunk = this.#chunks[Math.floor(cluster / CHUNK)];
      const chunkEnd = (Math.floor(cluster / CHUNK) + 1) * CHUNK;
      if (chunk === undefined) {
        cluster = chunkEnd;
        continue;
      }
      for (; cluster < Math.min(chunkEnd, end); cluster++) {
        if (chunk[cluster % CHUNK] !== 0) return cluster;
      }
    }
    return Number.POSITIVE_INFINITY;
  }

  #replace(index: number, chunk: Chunk): Chunk {
    this.#memory += chunk.byteLength - (this.#chunks[index]?.byteLength ?? 0);
    if (this.#memory > MEMORY_MAX) {
      const reason = `refers to so many clusters that counting them takes more than ${MEMORY_MAX} bytes of memory`;
      throw new UnsupportedError(this.#path, reason);
    }
    // Without gaps the array stays a dense one.
    while (this.#chunks.length < index) this.#chunks.push(undefined);
    this.#chunks[index] = chunk;
    return chunk;
  }
}

function maxOf(chunk: Chunk): number {
  return chunk instanceof Float64Array
    ? Number.POSITIVE_INFINITY
    : 2 ** (chunk.BYTES_PER_ELEMENT * 8) - 1;
}

function wider(chunk: Chunk): Chunk {
  if (chunk instanceof Uint8Array) return Uint16Array.from(chunk);
  if (chunk instanceof Uint16Array) return Uint32Array.from(chunk);
  return Float64Array.from(chunk);
}
