/** Which host clusters something refers to: a bit for each, in chunks that exist where there are any. */

/** Clusters of a chunk. */
const CHUNK = 2 ** 20;

export class UsedClusters {
  readonly #chunks: (Uint32Array | undefined)[] = [];
  /** How many there are. */
  count = 0;
  /** The first cluster behind all of them. */
  end = 0;

  /** Returns false if the cluster was used before. */
  mark(cluster: number): boolean {
    const index = Math.floor(cluster / CHUNK);
    const chunk = this.#chunks[index] ?? this.#addChunk(index);
    const word = (cluster % CHUNK) >>> 5;
    const bit = 1 << (cluster & 31);
    const before = chunk[word] ?? 0;
    if ((before & bit) !== 0) return false;
    chunk[word] = before | bit;
    this.count++;
    if (cluster >= this.end) this.end = cluster + 1;
    return true;
  }

  /** Runs of clusters before `end` that nothing refers to, from cluster `start` on. */
  *gaps(start: number): Generator<{ first: number; count: number }> {
    for (let first = start; first < this.end; ) {
      const used = this.#next(first, true);
      if (used > first) yield { first, count: used - first };
      first = this.#next(used, false);
    }
  }

  /** The first cluster from `start` on that is used, or is not; `end`, if there is none before. */
  #next(start: number, isUsed: boolean): number {
    const other = isUsed ? 0 : -1;
    let cluster = start;
    while (cluster < this.end) {
      const chunk = this.#chunks[Math.floor(cluster / CHUNK)];
      if (chunk === undefined) {
        if (!isUsed) return cluster;
        cluster = (Math.floor(cluster / CHUNK) + 1) * CHUNK;
        continue;
      }
      const word = chunk[(cluster % CHUNK) >>> 5] ?? 0;
      if ((word | 0) === other) cluster += 32 - (cluster % 32);
      else if (((word >>> (cluster % 32)) & 1) === (isUsed ? 1 : 0)) return cluster;
      else cluster++;
    }
    return this.end;
  }

  #addChunk(index: number): Uint32Array {
    const chunk = new Uint32Array(CHUNK / 32);
    // Without gaps the array stays a dense one.
    while (this.#chunks.length < index) this.#chunks.push(undefined);
    this.#chunks[index] = chunk;
    return chunk;
  }
}
