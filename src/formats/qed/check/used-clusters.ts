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

  #addChunk(index: number): Uint32Array {
    const chunk = new Uint32Array(CHUNK / 32);
    // Without gaps the array stays a dense one.
    while (this.#chunks.length < index) this.#chunks.push(undefined);
    this.#chunks[index] = chunk;
    return chunk;
  }
}
