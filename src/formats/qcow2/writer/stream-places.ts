/**
 * Where compressed streams go: one directly behind the other, as QEMU packs them, so that one host cluster has
 * several, and one stream may lie in two. Each stream counts as a reference to each cluster that it touches.
 *
 * The last cluster is not full yet: it has a reference of its own, whoever else refers to it, until the next
 * stream does not fit; then that stream's reference takes its place, if it starts there. All threads share it.
 */

import { hex, TsimgfsError } from "../../../errors.ts";
import type { ClusterAllocator } from "./cluster-allocator.ts";
import type { ClusterRun } from "./refcount-store.ts";
import { NUMBER, type SharedState } from "./shared-state.ts";

/** Host offsets have no more bits, whatever the descriptor has room for. */
const HOST_OFFSET_BITS = 56;

export interface StreamPlacesContext {
  readonly allocator: ClusterAllocator;
  readonly state: SharedState;
  readonly path: string;
  /** Bytes. */
  readonly clusterSize: number;
  readonly refcountBits: number;
  /** The bits of a descriptor that are the host offset. */
  readonly offsetBits: number;
}

export class StreamPlaces {
  readonly #allocator: ClusterAllocator;
  readonly #state: SharedState;
  readonly #path: string;
  readonly #clusterSize: number;
  /** The most references that a cluster can have. */
  readonly #refcountMax: number;
  /** Streams end at this host offset at the latest. */
  readonly #offsetMax: number;
  /** References that the last `place` adds to host clusters, but for their reservation's. */
  readonly #added = new Map<number, number>();
  /** References that the cluster has that the next stream may go to. */
  #references = 0;

  constructor(context: StreamPlacesContext) {
    this.#allocator = context.allocator;
    this.#state = context.state;
    this.#path = context.path;
    this.#clusterSize = context.clusterSize;
    this.#refcountMax = 2 ** context.refcountBits - 1;
    this.#offsetMax = 2 ** Math.min(context.offsetBits, HOST_OFFSET_BITS);
  }

  /**
   * Choose places for streams, in that order; `count` must follow. Under the exclusive lock, in `exclusively` of the
   * allocator.
   *
   * @param streamBytes bytes of each, less than a cluster
   * @returns the host offset of each, as far as there are clusters; none: reserve first
   * @throws {TsimgfsError} EFBIG: the format has no such offset
   */
  place(streamBytes: readonly number[]): number[] {
    this.#added.clear();
    const offsets: number[] = [];
    const tail = this.#tail;
    if (tail !== 0) this.#references = this.#allocator.refcountOf(this.#clusterOf(tail));
    for (const bytes of streamBytes) {
      const offset = this.#placeOne(bytes);
      if (offset === 0) break;
      offsets.push(offset);
    }
    return offsets;
  }

  /**
   * Count the references of what `place` has placed; durable with the next flush. Without the lock, in the
   * same `exclusively`.
   */
  count(): void {
    const clusters = [...this.#added.keys()].sort((a, b) => a - b);
    let at = 0;
    while (at < clusters.length) {
      const first = clusters[at] ?? 0;
      let count = 1;
      while (clusters[at + count] === first + count) count++;
      this.#raise({ first, count });
      at += count;
    }
  }

  /** At the end: no stream follows any more. */
  close(): void {
    if (this.#tail === 0) return;
    this.#release(this.#clusterOf(this.#tail));
    this.#tail = 0;
    this.#allocator.frees.publish();
  }

  /** Where the next stream goes; 0: to a new cluster. */
  get #tail(): number {
    return this.#state.get(NUMBER.streamTail);
  }

  set #tail(hostOffset: number) {
    this.#state.set(NUMBER.streamTail, hostOffset);
  }

  #clusterOf(hostOffset: number): number {
    return Math.floor(hostOffset / this.#clusterSize);
  }

  /** Returns 0 if there are no clusters. */
  #placeOne(bytes: number): number {
    const size = this.#clusterSize;
    let offset = this.#tail;
    if (offset === 0 || (offset % size) + bytes > size) {
      if (this.#allocator.take(1) === 0) return 0;
      const next = this.#allocator.taken;
      const isAdjacent = offset !== 0 && next === this.#clusterOf(offset) + 1;
      // The reference that the cluster was reserved with becomes the stream's, or nobody's.
      if (offset !== 0 && !isAdjacent) this.#release(this.#clusterOf(offset));
      if (!isAdjacent) offset = next * size;
      this.#references = 1;
    }
    const end = offset + bytes;
    this.#requireRoom(end);
    this.#addReference(this.#clusterOf(end - 1), end);
    return offset;
  }

  /** A stream that ends at `end` is one more reference to the cluster that it ends in. */
  #addReference(cluster: number, end: number): void {
    const isFull = end % this.#clusterSize === 0 || this.#references >= this.#refcountMax;
    if (isFull) {
      this.#tail = 0;
      return;
    }
    this.#references++;
    this.#added.set(cluster, (this.#added.get(cluster) ?? 0) + 1);
    this.#tail = end;
  }

  #release(cluster: number): void {
    this.#allocator.frees.add(cluster, 1);
    this.#allocator.frees.publish();
  }

  #raise(run: ClusterRun): void {
    this.#allocator.raise(run, (cluster, refcount) => refcount + (this.#added.get(cluster) ?? 0));
  }

  #requireRoom(end: number): void {
    if (end <= this.#offsetMax) return;
    this.#allocator.frees.forget();
    const reason = `no compressed cluster can end at host offset ${hex(end)}`;
    throw new TsimgfsError("EFBIG", this.#path, reason);
  }
}
