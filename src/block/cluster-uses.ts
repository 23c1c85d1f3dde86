/**
 * What each cluster of an image file is used for: a byte each, in chunks that exist where there is anything
 * to say. A cluster that is used for several things counts as the one that matters most.
 */

import { UnsupportedError } from "../errors.ts";

/** From what matters least to what matters most. */
export const CLUSTER_USE = {
  /** Nothing refers to it, and its refcount is 0. */
  none: 0,
  /** Nothing refers to it, but it cannot be used either. */
  leaked: 1,
  /** Only snapshots refer to it, or tables beyond the end of the disk, such as the saved state of a machine. */
  snapshot: 2,
  /** Of the disk; it reads as zeros all the same. */
  zero: 3,
  /** Data of the disk. */
  data: 4,
  /** Compressed data of the disk. */
  compressed: 5,
  /** Header, tables, refcounts, bitmaps. */
  metadata: 6,
} as const;
export type ClusterUse = (typeof CLUSTER_USE)[keyof typeof CLUSTER_USE];

/** Clusters of a chunk. */
const CHUNK = 4096;

/** Our limit, bytes: as many clusters of which something is to be said. */
const MEMORY_MAX = 2 ** 30;

/** Clusters with one use. */
export interface UseRun {
  use: ClusterUse;
  /** Clusters, > 0. */
  length: number;
}

export class ClusterUses {
  readonly #path: string;
  readonly #chunks: (Uint8Array | undefined)[] = [];
  #memory = 0;

  /** @param path of the image file, for messages */
  constructor(path: string) {
    this.#path = path;
  }

  /**
   * Note a use of clusters; one that matters more, and was noted before, stays.
   *
   * @throws {UnsupportedError} the limit of memory is reached
   */
  mark(first: number, count: number, use: ClusterUse): void {
    const end = first + count;
    for (let cluster = first; cluster < end; ) {
      const index = Math.floor(cluster / CHUNK);
      const chunk = this.#chunks[index] ?? this.#addChunk(index);
      const chunkEnd = Math.min(end, (index + 1) * CHUNK);
      for (; cluster < chunkEnd; cluster++) {
        const at = cluster % CHUNK;
        if ((chunk[at] ?? 0) < use) chunk[at] = use;
      }
    }
  }

  /**
   * The use of a cluster and how far it holds; adjacent runs may be alike.
   *
   * @param out overwritten; its length is not more than `maxLength` clusters
   */
  runAt(cluster: number, maxLength: number, out: UseRun): void {
    const index = Math.floor(cluster / CHUNK);
    const chunk = this.#chunks[index];
    const end = Math.min(cluster + maxLength, (index + 1) * CHUNK);
    out.use = useOf(chunk?.[cluster % CHUNK]);
    let next = cluster + 1;
    if (chunk === undefined) next = end;
    else while (next < end && chunk[next % CHUNK] === out.use) next++;
    out.length = next - cluster;
  }

  #addChunk(index: number): Uint8Array {
    this.#memory += CHUNK;
    if (this.#memory > MEMORY_MAX) {
      const reason = `uses more than ${MEMORY_MAX} clusters, too many for a picture`;
      throw new UnsupportedError(this.#path, reason);
    }
    const chunk = new Uint8Array(CHUNK);
    // Without gaps the array stays a dense one.
    while (this.#chunks.length < index) this.#chunks.push(undefined);
    this.#chunks[index] = chunk;
    return chunk;
  }
}

const USES: readonly ClusterUse[] = Object.values(CLUSTER_USE);

function useOf(byte: number | undefined): ClusterUse {
  return USES[byte ?? CLUSTER_USE.none] ?? CLUSTER_USE.none;
}
